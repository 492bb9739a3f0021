"""Whole trainings by ``tools/train.py``, of a detector that costs nothing."""

import json
import re
import signal

import deim_mmdet  # noqa: F401  registers what checkpoints hold

import mmdet_tools
import pytest
import toy
from states import assert_equal_runs, last_state
from toy import run_tool, train

pytestmark = pytest.mark.slow

ITERS = 4


def logged(work_dir):
    """Learning rate by iteration, over all runs of a work directory; the last run counts."""
    rates = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if 'lr' in entry:
                rates[entry['iter']] = entry['lr']
    return rates


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('toy')
    toy.write_data_set(folder)
    return toy.write_config(folder)


@pytest.fixture(scope='module')
def uninterrupted(config):
    work_dir = config.parent / 'uninterrupted'
    return work_dir, train(config, '--work-dir', work_dir)


def test_recipe_is_printed_and_stages_follow_each_other(uninterrupted):
    _, log = uninterrupted
    assert re.search(r'dense, flat, no-augmentation stage +2, 4, 6 +2, 4, 6\n', log)
    assert log.index('published') < log.index('Epoch(train)')
    switches = [line.split(' - ')[-1] for line in log.splitlines() if 'begins' in line]
    assert switches == [
        f'Epoch {epoch} of 8: stage {stage} begins'
        for epoch, stage in ((1, 'warm-up'), (3, 'dense'), (5, 'flat'), (7, 'no-augmentation'))
    ]


def test_killed_in_each_stage_and_resumed(config, uninterrupted):
    """SIGKILL in three epochs, one of them the first after a restart, and in an evaluation."""
    work_dir = config.parent / 'interrupted'
    kills = (('1,2', 1, 'warm-up'), ('3,val', 4, 'dense'), ('5,2', 5, 'flat'), ('6,3', 6, 'flat'))
    for moment, saved, stage in kills:
        train(*(config, '--work-dir', work_dir, '--resume'), kill_at=moment, expect=-signal.SIGKILL)
        state = last_state(work_dir)
        assert (state['meta']['epoch'], state['info']['stage']) == (saved, stage)
    log = train(config, '--work-dir', work_dir, '--resume')
    assert 'Epoch 7 of 8: stage no-augmentation begins' in log
    assert 'Epoch 7 of 8: restart from the best checkpoint' in log
    reference, _ = uninterrupted
    assert_equal_runs(reference, work_dir)
    assert logged(work_dir) == logged(reference)
    assert len(logged(reference)) == 8 * ITERS


def test_only_the_newest_checkpoints_and_the_best_are_kept(uninterrupted):
    work_dir, _ = uninterrupted
    names = {path.name for path in work_dir.glob('*.pth')}
    assert {f'epoch_{n}.pth' for n in (6, 7, 8)} < names
    assert len(names) == 5
    assert 'best_augmented.pth' in names
    assert any(name.startswith('best_coco_bbox_mAP') for name in names)


def test_two_processes_on_the_cpu(config):
    work_dir = config.parent / 'gloo'
    log = train(
        config,
        *('--launcher', 'pytorch', '--work-dir', work_dir),
        *('--epochs', '4', '--val-interval', '2'),
        launcher=toy.two_processes(),
    )
    assert re.search(r'images per optimiser step +2 +4\n', log)
    assert re.search(r'learning rate +0\.0005 +0\.001 \(x 2\)\n', log)
    assert last_state(work_dir)['meta'].items() >= dict(epoch=4, iter=4 * ITERS // 2).items()
    assert 'coco/bbox_mAP' in log


def test_our_and_mmdets_test_tool_agree_on_the_checkpoint(config, uninterrupted):
    checkpoint = uninterrupted[0] / 'epoch_8.pth'
    work_dir, predictions = config.parent / 'test', config.parent / 'predictions.pkl'
    ours = run_tool(
        toy.ROOT / 'tools' / 'test.py',
        config,
        checkpoint,
        *('--work-dir', work_dir, '--out', predictions, '--show-dir', 'pictures'),
    )
    theirs = run_tool(
        mmdet_tools.TOOLS / 'test.py',
        config,
        checkpoint,
        *('--work-dir', work_dir),
        launcher=mmdet_tools.LAUNCHER,
    )
    figures = [re.search(r'bbox_mAP_copypaste: (.*)', log)[1] for log in (ours, theirs)]
    assert figures[0] == figures[1]
    assert predictions.stat().st_size > 0
    assert list(work_dir.glob('*/pictures/*.png'))


def test_test_time_augmentation(config, uninterrupted):
    log = run_tool(
        toy.ROOT / 'tools' / 'test.py',
        config,
        uninterrupted[0] / 'epoch_8.pth',
        *('--work-dir', config.parent / 'tta', '--tta'),
    )
    assert 'bbox_mAP_copypaste' in log
