"""Training, evaluation and ``check_dataset.py`` on data with every fault that is checked for."""

import json
import re

from deim_mmdet.data_checks.config import check_data
from deim_mmdet.data_checks.problems import PROBLEMS

import pytest
import torch
import toy
from messy_data import BREAKING, HARMLESS, write_messy_data
from mmdet.registry import MODELS
from mmengine.config import Config
from toy import run_tool, train

pytestmark = pytest.mark.slow

UNREADABLE = ('missing.jpg', 'zero.jpg', 'cut.jpg', 'cut.png', 'page.jpg', 'huge.png', 'huge.jpg')


def messy_config(folder, breaking):
    """A config that trains on messy data and validates on the same with ids that differ."""
    write_messy_data(folder, breaking)
    content = json.loads((folder / 'all.json').read_text())
    for number, annotation in enumerate(content['annotations']):
        annotation['id'] = number
    (folder / 'val.json').write_text(json.dumps(content))
    changes = {'model.bbox_head.num_classes': 3}
    for split in ('val', 'test'):
        changes[f'{split}_dataloader.dataset.ann_file'] = 'val.json'
        changes[f'{split}_evaluator.ann_file'] = f'{folder}/val.json'
    return toy.write_config(folder, **changes)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    return messy_config(tmp_path_factory.mktemp('messy'), breaking=False)


@pytest.fixture(scope='module')
def broken(tmp_path_factory):
    return messy_config(tmp_path_factory.mktemp('broken'), breaking=True)


def check_dataset(config, *options, expect):
    out = config.parent / 'report'
    log = run_tool(
        toy.ROOT / 'tools' / 'check_dataset.py', config, '--out', out, *options, expect=expect
    )
    return log, json.loads((out / 'report.json').read_text())


def test_training_runs_to_the_end_and_says_what_it_found(config):
    work_dir = config.parent / 'run'
    log = train(config, '--work-dir', work_dir, '--cfg-options', 'train_cfg.max_epochs=4')
    assert (work_dir / 'epoch_4.pth').exists()
    assert 'coco/bbox_mAP' in log
    for name, count in HARMLESS.items():
        of_images = list(PROBLEMS).index(name) > list(PROBLEMS).index('image_without_objects')
        assert (f'{count} {PROBLEMS[name].title}' in log) != of_images
    # Sizes are compared when images are read, in a worker process.
    assert 'in the annotation file. Its boxes are taken as pixels of the annotated size' in log


def test_report_counts_every_fault_and_exits_with_zero(config):
    log, reports = check_dataset(config, '--images', '--workers', '2', expect=0)
    training, evaluation = reports
    assert training['splits'] == ['training']
    assert evaluation['splits'] == ['validation', 'test']
    counts = {name: problem['count'] for name, problem in training['problems'].items()}
    assert counts == HARMLESS
    expected = {**HARMLESS, 'annotation_id_zero': 1}
    del expected['repeated_annotation_id']
    counts = {name: problem['count'] for name, problem in evaluation['problems'].items()}
    assert counts == expected
    assert (config.parent / 'report' / 'report.png').stat().st_size > 10_000
    assert 'BREAKS' not in log


def test_files_that_break_training_are_named(broken):
    log, reports = check_dataset(broken, '--images', '--workers', '1', expect=1)
    training = reports[0]['problems']
    assert {name: training[name]['count'] for name in BREAKING} == BREAKING
    assert all(name in log for name in UNREADABLE)
    # Annotations alone are in order; training stops at the first of the files.
    check_data(Config.fromfile(broken, import_custom_modules=False))
    log = train(broken, '--work-dir', broken.parent / 'run', '--no-check-data', expect=1)
    assert PROBLEMS['unused_category'].title not in log
    error = log.strip().splitlines()[-1]
    assert any(f'{broken.parent}/{name}' in error for name in UNREADABLE), error


def test_training_goes_on_without_files_that_cannot_be_read(broken, config):
    option = ('--cfg-options', 'train_dataloader.dataset.skip_unreadable=True')
    log, reports = check_dataset(broken, '--images', *option, expect=1)
    training, evaluation = reports
    assert {name: training['problems'][name]['count'] for name in BREAKING} == BREAKING
    # Evaluation has no other image to take.
    assert (training['breaks'], evaluation['breaks']) == (False, True)
    readable = config.parent
    options = (
        *('train_cfg.max_epochs=4', f'val_dataloader.dataset.data_root={readable}'),
        f'val_evaluator.ann_file={readable}/val.json',
    )
    work_dir = broken.parent / 'skipping'
    log = train(broken, '--work-dir', work_dir, *option, *options)
    assert (work_dir / 'epoch_4.pth').exists()
    for name in UNREADABLE:
        assert re.search(rf'Skipped: .*{broken.parent}/{name}', log), name


def test_annotations_that_break_training_are_refused_first_by_one_process(tmp_path, monkeypatch):
    config = Config.fromfile(messy_config(tmp_path, breaking=False), import_custom_modules=False)
    config.val_dataloader.dataset.ann_file = 'all.json'
    with pytest.raises(ValueError, match=r'would break training.*check_dataset.py'):
        check_data(config)
    monkeypatch.setenv('RANK', '1')
    check_data(config)


def test_the_test_set_is_checked_before_a_test(config, tmp_path):
    """As training checks its sets, by the same option."""
    toy.write_data_set(tmp_path)
    checkpoint = tmp_path / 'weights.pth'
    model = dict(Config.fromfile(config, import_custom_modules=False).model)
    torch.save(dict(state_dict=MODELS.build(model).state_dict()), checkpoint)
    command = (toy.ROOT / 'tools' / 'test.py', config, checkpoint, '--work-dir', tmp_path / 'work')
    log = run_tool(*command)
    assert f'test: {config.parent}/val.json' in log
    log = run_tool(*command, '--no-check-data')
    assert f'test: {config.parent}/val.json' not in log
    bad = ('--cfg-options', 'test_dataloader.dataset.ann_file=all.json')
    assert 'the data would break the evaluation' in run_tool(*command, *bad, expect=1)


def test_resuming_where_nothing_was_saved_starts_from_the_given_weights(config, tmp_path):
    """As a job does that always resumes."""
    cfg = Config.fromfile(config, import_custom_modules=False)
    weights = MODELS.build(dict(cfg.model)).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')
    work_dir = tmp_path / 'work'
    options = (
        *('--resume', '--work-dir', work_dir, '--cfg-options', 'train_cfg.max_epochs=4'),
        f'load_from={tmp_path}/weights.pth',
    )
    log = train(config, *options)
    assert f'there is no checkpoint in {work_dir} yet' in log
    assert re.search(rf'Load checkpoint from \S*{tmp_path}/weights\.pth', log)
    assert 'nothing is left to train' in train(config, *options)
