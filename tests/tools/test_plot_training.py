import json

import cv2
import pytest

from deim_mmdet.visualization.figures import STAGE_COLOURS


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis/plot_training.py')


def write_run(work_dir, name, lines, config=None):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    if config is not None:
        (folder / 'config.py').write_text(config)


def train_line(step, epoch, loss):
    return {'lr': 1e-3, 'loss': loss, 'loss_bbox': 1.0, 'epoch': epoch, 'iter': step, 'step': step}


def test_a_resumed_run_replaces_what_it_repeats(tool, tmp_path):
    first = [train_line(5, 1, 9.0), train_line(10, 1, 8.0), train_line(15, 2, 7.0)]
    write_run(tmp_path, '20250101_000000', first)
    second = [train_line(15, 2, 6.5), train_line(20, 2, 6.0), {'coco/bbox_mAP': 0.5, 'step': 2}]
    write_run(tmp_path, '20250102_000000', second)
    history = tool.read_history(tmp_path)
    assert {step: line['loss'] for step, line in history.train.items()} == {
        5: 9.0,
        10: 8.0,
        15: 6.5,
        20: 6.0,
    }
    assert history.val[2]['coco/bbox_mAP'] == 0.5
    assert history.iterations_per_epoch == 10


def test_a_cut_last_line_is_left_out(tool, tmp_path):
    write_run(tmp_path, '20250101_000000', [train_line(5, 1, 9.0)])
    file = tmp_path / '20250101_000000/vis_data/scalars.json'
    file.write_text(file.read_text() + '\n{"loss": 8.0, "st')
    assert list(tool.read_history(tmp_path).train) == [5]


def test_plots_with_and_without_stages(tool, tmp_path):
    lines = [train_line(i, 1 + (i - 1) // 10, 10 / i) for i in range(1, 41)]
    lines += [{'coco/bbox_mAP': 0.1 * e, 'coco/bbox_mAP_50': 0.2 * e, 'step': e} for e in (2, 4)]
    for name, config in (
        ('plain', 'model = dict()\n'),
        ('deim', "custom_hooks = [dict(type='DenseO2OScheduleHook', stages=(1, 2, 3))]\n"),
    ):
        write_run(tmp_path / name, '20250101_000000', lines, config)
        tool.plot_training(tmp_path / name, tmp_path / f'{name}.png')
    plain, deim = (cv2.imread(str(tmp_path / f'{name}.png')) for name in ('plain', 'deim'))
    assert plain.shape == deim.shape
    # The stages' colours are in the one plot and not in the other.
    for colour in STAGE_COLOURS.values():
        bgr = tuple(int(colour[i : i + 2], 16) for i in (5, 3, 1))
        assert (deim == bgr).all(axis=2).sum() > 1000
        assert (plain == bgr).all(axis=2).sum() < 100


def test_an_empty_folder_is_named(tool, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        tool.read_history(tmp_path)


def test_boundaries_are_derived_as_the_runner_does(tool, tmp_path):
    config = """
custom_hooks = [dict(type='DenseO2OScheduleHook')]
recipe = dict(epochs=160, stages=(4, 78, 148), warmup_iters=2000)
auto_scale_lr = dict(enable=True, base_batch_size=128)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=16)
"""
    write_run(tmp_path, '20250101_000000', [train_line(5, 1, 9.0)], config)
    t1, t2, t3 = tool.read_boundaries(tmp_path)
    assert 0 < t1 < t2 < t3 < 16
    # Half of the augmented epochs are dense.
    assert abs((t2 - t1) - t3 / 2) <= 1
