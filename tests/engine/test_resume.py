"""A training that is stopped anywhere and resumed is the uninterrupted one, bit for bit."""

import copy
import shutil

from deim_mmdet.engine import DEIMRunner

import pytest
import toy
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from states import assert_equal_runs, differences, state_of

pytestmark = pytest.mark.slow

EPOCHS = 10
CHECKPOINT = 'default_hooks.checkpoint'
# The last stage begins after epoch 6. Its first evaluation is no new best, the second is, the third
# is none again.
SCORES = [0.1, 0.3, 0.2, 0.35, 0.3, 0.25, 0.2, 0.5, 0.4, 0.45]


class Stopped(BaseException):
    """In place of a signal that ends the process."""


@HOOKS.register_module()
class StopHook(Hook):
    """Ends the training at a moment: (name of the hook's method, finished epochs)."""

    priority = 'LOWEST'
    moment = None

    def _stop(self, name, epoch):
        if (name, epoch) == StopHook.moment:
            raise Stopped

    def before_train_epoch(self, runner):
        self._stop('before_train_epoch', runner.epoch)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == 2:
            self._stop('after_train_iter', runner.epoch)

    def after_train_epoch(self, runner):
        self._stop('after_train_epoch', runner.epoch)

    def before_val_epoch(self, runner):
        self._stop('before_val_epoch', runner.epoch - 1)

    def after_val_epoch(self, runner, metrics=None):
        self._stop('after_val_epoch', runner.epoch - 1)

    def after_val(self, runner):
        self._stop('after_val', runner.epoch - 1)


# In the middle of every epoch and of what follows it; all others around the best checkpoint, the
# switch and a further restart.
MOMENTS = [
    (name, epoch)
    for epoch in range(EPOCHS)
    for name in (
        'before_train_epoch',
        'after_train_iter',
        'after_train_epoch',
        'before_val_epoch',
        'after_val_epoch',
        'after_val',
    )
    if name in ('after_train_iter', 'after_val_epoch') or epoch in (3, 6, 7)
]


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('resume')
    toy.write_data_set(folder)
    cfg = toy.in_process(folder, 'config', **toy.scripted(SCORES))
    cfg.custom_hooks += [dict(type='StopHook')]
    return cfg


@pytest.fixture
def train(config, request):
    """Function (work directory, moment to stop at, options): trains or goes on."""
    count = 0

    def train(work_dir, moment=None, hooks=(), **options):
        nonlocal count
        count += 1
        cfg = copy.deepcopy(config)
        cfg.custom_hooks += hooks
        cfg.merge_from_dict(
            dict(
                work_dir=str(work_dir),
                experiment_name=f'{request.node.name}_{count}',
                resume=True,
                **options,
            )
        )
        StopHook.moment = moment
        runner = DEIMRunner.from_cfg(cfg)
        try:
            runner.train()
        except Stopped:
            return None
        assert moment is None, f'was not stopped at {moment}'
        return runner

    return train


@pytest.fixture(scope='module')
def uninterrupted(config, tmp_path_factory):
    cfg = copy.deepcopy(config)
    work_dir = tmp_path_factory.mktemp('uninterrupted')
    StopHook.moment = None
    cfg.merge_from_dict(dict(work_dir=str(work_dir), experiment_name='uninterrupted'))
    DEIMRunner.from_cfg(cfg).train()
    return work_dir


def test_stopped_at_every_epoch_and_resumed(train, uninterrupted, tmp_path):
    """At one moment after the other, so that every run begins where the one before ended."""
    for moment in MOMENTS:
        train(tmp_path, moment)
    train(tmp_path)
    assert_equal_runs(uninterrupted, tmp_path)
    restarts = {
        epoch: state_of(uninterrupted / f'epoch_{epoch}.pth')['info']['ema_restart']
        for epoch in (6, 7, 8, 9, 10)
    }
    # None of them knows the evaluation that follows it.
    assert [state['lowered'] for state in restarts.values()] == [None, 0, 1, 1, 2]
    assert {state['epoch'] for state in restarts.values()} == {4}


@pytest.mark.parametrize(
    ('evaluated', 'options'),
    [
        (range(1, 11), {f'{CHECKPOINT}.interval': 3, f'{CHECKPOINT}.max_keep_ckpts': 2}),
        (range(2, 11, 2), {f'{CHECKPOINT}.interval': 3, 'train_cfg.val_interval': 2}),
        (range(3, 11), {'train_cfg.val_interval': 3, 'train_cfg.dynamic_intervals': [(4, 1)]}),
    ],
    ids=['rare checkpoints', 'both rare', 'changing evaluations'],
)
def test_intervals_of_checkpoints_and_evaluations(train, tmp_path, evaluated, options):
    """A run that is stopped before its next checkpoint begins at the last one, without new bests.

    The files in the end are the same: bests that were found in between are found again.
    """
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    train(whole, **options)
    for epoch in range(EPOCHS):
        for name in ('after_train_iter', 'after_train_epoch', 'after_val_epoch', 'after_val'):
            if 'val' not in name or epoch + 1 in evaluated:
                train(stopped, (name, epoch), **options)
    train(stopped, **options)
    assert_equal_runs(whole, stopped)


@pytest.mark.parametrize('epoch', [2, 6, 7, 9])
def test_a_saved_epoch_alone_leads_to_the_same_end(train, uninterrupted, tmp_path, epoch):
    """From the checkpoint alone, with what lay beside it, in another folder."""
    for name in (f'epoch_{epoch}.pth', 'best_augmented.pth'):
        shutil.copy(uninterrupted / name, tmp_path)
    train(tmp_path, load_from=str(tmp_path / f'epoch_{epoch}.pth'))
    name = f'epoch_{EPOCHS}.pth'
    assert not differences(state_of(uninterrupted / name), state_of(tmp_path / name))


def test_seed_that_mmengine_draws_is_resumed(train, tmp_path):
    options = dict(randomness=dict(seed=None), **{'train_cfg.val_interval': 5})
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    train(whole, **options)
    shutil.copytree(whole, resumed, ignore=shutil.ignore_patterns('epoch_[4-9].pth'))
    (resumed / f'epoch_{EPOCHS}.pth').unlink()
    train(resumed, load_from=str(resumed / 'epoch_3.pth'), **options)
    name = f'epoch_{EPOCHS}.pth'
    states = [state_of(folder / name) for folder in (whole, resumed)]
    assert states[0]['meta']['seed'] not in (None, 0)
    assert not differences(*states)


def test_early_stop_survives(train, tmp_path):
    """The best of epoch 4 is followed by three lower scores: epoch 7 is the last."""
    hook = dict(
        type='ResumableEarlyStoppingHook', monitor='coco/bbox_mAP', min_delta=0.0, patience=3
    )
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    train(whole, hooks=[hook])
    for moment in (('before_val_epoch', 4), ('after_val', 5), ('after_val_epoch', 6)):
        train(stopped, moment, hooks=[hook])
    for _ in range(2):
        assert train(stopped, hooks=[hook]).epoch == 7
    assert_equal_runs(whole, stopped)
    log = ''.join(path.read_text() for path in stopped.glob('*/*.log'))
    # mmengine's message, in each of three runs that came to this evaluation.
    assert log.count('did not improve in the last 3 records. best score: 0.350') == 3


def test_comparison_would_see_another_seed(train, uninterrupted, tmp_path):
    train(tmp_path, randomness=dict(seed=1))
    name = f'epoch_{EPOCHS}.pth'
    places = differences(state_of(uninterrupted / name), state_of(tmp_path / name))
    assert any(place.startswith('/ema_state_dict') for place in places)
    assert any(place.startswith('/optimizer') for place in places)
