import json
import math

from deim_mmdet.engine.history import (
    Evaluation,
    evaluations_of,
    read_boundaries,
    read_evaluations,
    read_history,
    write_evaluations,
)

import pytest


def write_run(work_dir, name, lines, config=None):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    if config is not None:
        (folder / 'config.py').write_text(config)


def train_line(step, epoch, loss):
    return {'lr': 1e-3, 'loss': loss, 'loss_bbox': 1.0, 'epoch': epoch, 'iter': step, 'step': step}


def val_line(epoch, ap):
    return {'coco/bbox_mAP': ap, 'coco/bbox_mAP_50': 2 * ap, 'time': 0.1, 'step': epoch}


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    first = [train_line(5, 1, 9.0), train_line(10, 1, 8.0), train_line(15, 2, 7.0)]
    write_run(tmp_path, '20250101_000000', first)
    second = [train_line(15, 2, 6.5), train_line(20, 2, 6.0), {'coco/bbox_mAP': 0.5, 'step': 2}]
    write_run(tmp_path, '20250102_000000', second)
    history = read_history(tmp_path)
    assert {step: line['loss'] for step, line in history.train.items()} == {
        5: 9.0,
        10: 8.0,
        15: 6.5,
        20: 6.0,
    }
    assert history.val[2]['coco/bbox_mAP'] == 0.5
    assert history.iterations_per_epoch == 10


def test_a_cut_last_line_is_left_out(tmp_path):
    write_run(tmp_path, '20250101_000000', [train_line(5, 1, 9.0)])
    file = tmp_path / '20250101_000000/vis_data/scalars.json'
    file.write_text(file.read_text() + '\n{"loss": 8.0, "st')
    assert list(read_history(tmp_path).train) == [5]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        read_history(tmp_path)


def test_boundaries_are_derived_as_the_runner_does(tmp_path):
    config = """
custom_hooks = [dict(type='DenseO2OScheduleHook')]
recipe = dict(epochs=160, stages=(4, 78, 148), warmup_iters=2000)
auto_scale_lr = dict(enable=True, base_batch_size=128)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=16)
"""
    write_run(tmp_path, '20250101_000000', [train_line(5, 1, 9.0)], config)
    t1, t2, t3 = read_boundaries(tmp_path)
    assert 0 < t1 < t2 < t3 < 16
    # Half of the augmented epochs are dense.
    assert abs((t2 - t1) - t3 / 2) <= 1


@pytest.mark.parametrize(
    'kind', ['mmdet.DenseO2OScheduleHook', 'deim_mmdet.engine.hooks.DenseO2OScheduleHook']
)
def test_boundaries_of_a_config_that_was_dumped_with_paths(tmp_path, kind):
    config = f"""
custom_hooks = [
    dict(type='mine.that_is_not_installed.Hook'), dict(type='{kind}', stages=(2, 5, 9))
]
"""
    write_run(tmp_path, '20250101_000000', [train_line(5, 1, 9.0)], config)
    assert read_boundaries(tmp_path) == (2, 5, 9)


def test_evaluations_have_the_epochs_iteration_and_mean_loss(tmp_path):
    lines = [train_line(5 * i, 1 + (i - 1) // 2, float(i)) for i in range(1, 9)]
    # Epoch 2 was resumed: its evaluation before the kill doesn't count.
    write_run(tmp_path, '20250101_000000', [*lines[:4], val_line(2, 0.9)])
    write_run(tmp_path, '20250102_000000', [val_line(2, 0.1), *lines[4:], val_line(4, 0.3)])
    assert read_evaluations(tmp_path) == [
        Evaluation(2, 20, 3.5, 0.1, 0.2),
        Evaluation(4, 40, 7.5, 0.3, 0.6),
    ]


def test_other_figures_are_no_evaluation(tmp_path):
    write_run(tmp_path, '20250101_000000', [train_line(5, 1, 9.0), {'miou': 0.5, 'step': 1}])
    assert evaluations_of(read_history(tmp_path)) == []
    with pytest.raises(ValueError, match=rf'{tmp_path}.*no evaluation'):
        read_evaluations(tmp_path)


def test_a_record_reads_back(tmp_path):
    evaluations = [Evaluation(1, 25, 30.5, 0.0, 0.001), Evaluation(2, 50, math.nan, 0.25, 0.5)]
    path = tmp_path / 'record.csv'
    write_evaluations(evaluations, path)
    first, second = read_evaluations(path)
    assert first == evaluations[0]
    assert math.isnan(second.loss)
    assert (second.epoch, second.iteration, second.ap, second.ap50) == (2, 50, 0.25, 0.5)


@pytest.mark.parametrize('text', ['epoch,ap\n1,0.5\n', 'epoch,iteration,loss,ap,ap50\n1,2,x,0,0\n'])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    path = tmp_path / 'table.csv'
    path.write_text(text)
    with pytest.raises(ValueError, match=r'table\.csv is no record'):
        read_evaluations(path)
    with pytest.raises(FileNotFoundError, match=r'absent\.csv'):
        read_evaluations(tmp_path / 'absent.csv')
    path.write_text('epoch,iteration,loss,ap,ap50\n')
    with pytest.raises(ValueError, match=r'table\.csv.*no evaluation'):
        read_evaluations(path)
