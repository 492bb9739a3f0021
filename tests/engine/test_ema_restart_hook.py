import re

from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.engine import DEIMRunner, EMARestartHook, ExpWarmupEMAHook
from deim_mmdet.engine.hooks.ema_restart_hook import RESTART_CHECKPOINT

import pytest
import torch
import toy
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from states import differences, state_of

pytestmark = pytest.mark.slow

# Of 10 epochs the last four make the no-augmentation stage.
STEADY = [0.1, 0.3, 0.2, 0.25, 0.2, 0.1, 0.2, 0.1, 0.4, 0.3]


@HOOKS.register_module()
class WitnessHook(Hook):
    """Keeps what each epoch starts from, once all other hooks have acted."""

    priority = 'LOWEST'
    seen = {}
    act = None

    def before_train_epoch(self, runner):
        (ema,) = (hook for hook in runner.hooks if isinstance(hook, ExpWarmupEMAHook))
        snapshot = dict(
            model=runner.model.state_dict(),
            ema=ema.ema_model.module.state_dict(),
            ema_updates=ema.ema_model.steps,
            decay=ema.ema_model.decay,
            moments=runner.optim_wrapper.state_dict()['state'],
            rates=[group['lr'] for group in runner.optim_wrapper.param_groups],
            iteration=runner.iter,
        )
        WitnessHook.seen[runner.epoch] = clone(snapshot)

    def after_train_epoch(self, runner):
        if WitnessHook.act is not None:
            WitnessHook.act(runner)


def clone(part):
    if isinstance(part, torch.Tensor):
        return part.detach().clone()
    return {key: clone(value) for key, value in part.items()} if isinstance(part, dict) else part


@pytest.fixture
def train(tmp_path, request):
    """Function (scores, options) -> runner after training; its checkpoints are in ``work``."""
    toy.write_data_set(tmp_path)
    count = 0

    def train(scores, act=None, **options):
        nonlocal count
        count += 1
        options = {**toy.scripted(scores), 'recipe.epochs': 10, **options}
        cfg = toy.in_process(tmp_path, f'{request.node.name}_{count}', **options)
        cfg.custom_hooks += [dict(type='WitnessHook')]
        WitnessHook.seen, WitnessHook.act = {}, act
        runner = DEIMRunner.from_cfg(cfg)
        runner.train()
        return runner

    return train


def started_from(epoch, work):
    """Whether an epoch (0-based) began with all that a saved one (1-based) ended with."""
    saved = read_checkpoint(work)
    seen = WitnessHook.seen[epoch]
    weights = saved['ema_state_dict']
    expected = dict(
        model={k[7:]: v for k, v in weights.items() if k.startswith('module.')},
        ema=saved['state_dict'],
        ema_updates=weights['steps'],
        moments=saved['optimizer']['state'],
    )
    return not differences(expected, {key: seen[key] for key in expected})


def log_of(work):
    return ''.join(path.read_text() for path in sorted(work.glob('*/*.log')))


def origins(work):
    """For each epoch from the second on the saved epoch that it started from."""
    files = {int(path.stem[6:]): path for path in work.glob('epoch_*.pth')}
    found = {}
    for epoch in sorted(WitnessHook.seen)[1:]:
        (found[epoch + 1],) = (n for n, path in files.items() if started_from(epoch, path))
    return found


def test_restarts_from_the_best_augmented_epoch(train, tmp_path):
    runner = train(STEADY)
    work = tmp_path / 'work'
    # The switch; then one restart after each evaluation that is no new best, i.e. not after the
    # ninth.
    assert origins(work) == {2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 2, 8: 2, 9: 2, 10: 9}
    # Rates and counters go on.
    rates = [WitnessHook.seen[epoch]['rates'] for epoch in (6, 7, 8, 9)]
    assert all(rate == rates[0] for rate in rates)
    assert rates[0][0] == pytest.approx(5e-4 * 0.5)
    assert [WitnessHook.seen[epoch]['iteration'] for epoch in range(10)] == list(range(0, 40, 4))
    assert runner.iter == 40
    lines = re.findall(r'Epoch (\d+) of 10: restart from .* of epoch (.*);', log_of(work))
    assert lines == [(epoch, '2 with 0.3000') for epoch in '789']


@pytest.mark.parametrize(
    ('recipe', 'expected', 'rate'),
    [
        # Two clean epochs, of which the second goes on although the first was no new best.
        (dict(kind='edgecrafter', stages=(0, 4, 8)), {8: 7, 9: 2, 10: 9}, 0.5),
        # Later than the no-augmentation stage, and the cosine ends with it.
        (dict(stages=(2, 4, 6), restart_epoch=8), {7: 6, 8: 7, 9: 2, 10: 2}, 0.5),
    ],
)
def test_restarts_as_the_recipe_says(train, tmp_path, recipe, expected, rate):
    options = {f'recipe.{name}': value for name, value in recipe.items()}
    runner = train([*STEADY[:8], 0.2, 0.1], **options)
    found = origins(tmp_path / 'work')
    assert {epoch: found[epoch] for epoch in expected} == expected
    rates = [WitnessHook.seen[epoch]['rates'][0] / 5e-4 for epoch in (7, 8)]
    assert rates[0] > rates[1] == pytest.approx(rate)
    assert runner.recipe.stages == recipe['stages']


def test_decay_of_the_recipe_falls_with_every_further_restart(train):
    """A run a thousandth as long as the published one: 0.0003 below 1 becomes 0.3."""
    train(
        STEADY,
        **{
            'recipe.train_images': 8000,
            'recipe.ema_decay': 0.9999,
            'recipe.ema_restart_decay': 0.9997,
        },
    )
    decays = [WitnessHook.seen[epoch]['decay'] for epoch in range(10)]
    # The ninth evaluation is a new best.
    assert decays == pytest.approx([0.9] * 6 + [0.7, 0.6, 0.5, 0.5])


def test_given_numbers_win_and_the_decay_ends_at_zero(train):
    hooks = [
        dict(type='DenseO2OScheduleHook'),
        dict(type='ExpWarmupEMAHook'),
        dict(type='EMARestartHook', restart_decay=0.8, decay_step=0.3),
        dict(type='ScriptHook'),
    ]
    train([*STEADY[:8], 0.2, 0.1], custom_hooks=hooks)
    decays = [WitnessHook.seen[epoch]['decay'] for epoch in range(10)]
    assert decays[:6] == pytest.approx([0.9] * 6)
    assert decays[6:] == pytest.approx([0.8, 0.5, 0.2, 0])


def hooks_with(**numbers):
    return [
        dict(type='DenseO2OScheduleHook'),
        dict(type='ExpWarmupEMAHook'),
        dict(type='EMARestartHook', begin=6, **numbers),
        dict(type='ScriptHook'),
    ]


def test_resumed_run_counts_restarts_whose_decay_was_cut_at_zero(train, tmp_path):
    """Four evaluations of the last stage were no new best; three would have been enough for 0."""
    scores = [*STEADY[:8], 0.2, 0.1, 0.1]
    train(scores[:10], custom_hooks=hooks_with(restart_decay=0.8, decay_step=0.3))
    train(
        scores,
        resume=True,
        load_from=str(tmp_path / 'work' / 'epoch_10.pth'),
        custom_hooks=hooks_with(restart_decay=0.9, decay_step=0.1),
    )
    assert WitnessHook.seen[10]['decay'] == pytest.approx(0.9 - 4 * 0.1)


def test_resumed_from_checkpoints_that_hold_the_decay_itself(train, tmp_path):
    hooks = hooks_with(restart_decay=0.7, decay_step=0.2)
    train(STEADY, custom_hooks=hooks)
    path = tmp_path / 'work' / 'epoch_8.pth'
    for number, (saved, expected) in enumerate(
        [
            (dict(decay=0.8, numbers=[0.8, 0.3]), 0.7),
            (dict(decay=0.8 - 0.3, numbers=[0.8, 0.3]), 0.7 - 0.2),
            # Cut at 0: at least the third one.
            (dict(decay=0.0, numbers=[0.7, 0.3]), 0.7 - 3 * 0.2),
            (dict(decay=0.8, numbers=[0.8, 0.0]), 0.7),
            # As version 0.1 wrote it.
            (dict(decay=0.7 - 0.2), 0.7 - 0.2),
        ]
    ):
        checkpoint = torch.load(path, weights_only=False)
        info = checkpoint['message_hub']['runtime_info']
        info['ema_restart'] = dict(epoch=2, score=0.3, due=True, **saved)
        # They were written again after the evaluation.
        info['evaluated_epoch'] = 8
        older = tmp_path / 'work' / f'older_{number}.pth'
        torch.save(checkpoint, older)
        train(STEADY, resume=True, load_from=str(older), custom_hooks=hooks)
        assert WitnessHook.seen[8]['decay'] == pytest.approx(expected), saved
        assert state_of(tmp_path / 'work' / 'epoch_9.pth')['info']['ema_restart'].keys() == {
            *('epoch', 'score', 'lowered', 'due')
        }


def test_best_of_the_run_and_best_augmented_are_both_kept(train, tmp_path):
    train(STEADY)
    work = tmp_path / 'work'
    assert [path.name for path in work.glob('best_coco*')] == ['best_coco_bbox_mAP_epoch_9.pth']
    for part in ('state_dict', 'ema_state_dict'):
        kept = state_of(work / 'best_coco_bbox_mAP_epoch_9.pth')[part]
        assert not differences(kept, state_of(work / 'epoch_9.pth')[part])
    best, restart = state_of(work / RESTART_CHECKPOINT), state_of(work / 'epoch_2.pth')
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'meta'):
        assert not differences(best[part], restart[part])


@pytest.mark.parametrize(
    ('interval', 'expected'),
    [(2, {7: 2, 8: 7, 9: 2, 10: 9}), (3, {7: 3, 8: 7, 9: 8, 10: 9}), (4, {7: 4, 8: 7, 9: 4})],
)
def test_validation_interval(train, tmp_path, interval, expected):
    """Evaluated epochs: 2, 4, 6, 8, 10; 3, 6, 9, 10; 4, 8, 10."""
    train(STEADY, **{'train_cfg.val_interval': interval})
    found = origins(tmp_path / 'work')
    assert {epoch: found[epoch] for epoch in expected} == expected


def test_without_evaluation_before_there_is_no_restart(train, tmp_path):
    train(STEADY, **{'train_cfg.val_interval': 7})
    assert origins(tmp_path / 'work') == {epoch: epoch - 1 for epoch in range(2, 11)}
    assert {WitnessHook.seen[epoch]['decay'] for epoch in range(10)} == {
        WitnessHook.seen[0]['decay']
    }
    log = log_of(tmp_path / 'work')
    assert 'lower train_cfg.val_interval=7' in log
    assert 'goes on without a restart' in log
    assert not (tmp_path / 'work' / RESTART_CHECKPOINT).exists()


def test_recipe_without_the_last_stage_never_restarts(train, tmp_path):
    train(STEADY, **{'recipe.stages': (2, 4, 10)})
    assert origins(tmp_path / 'work') == {epoch: epoch - 1 for epoch in range(2, 11)}
    assert not (tmp_path / 'work' / RESTART_CHECKPOINT).exists()


@pytest.mark.parametrize('damage', ['missing', 'damaged'])
def test_checkpoint_that_cannot_be_read_is_named_and_training_goes_on(train, tmp_path, damage):
    path = tmp_path / 'work' / RESTART_CHECKPOINT

    def act(runner):
        if runner.epoch == 5:
            path.unlink()
            if damage == 'damaged':
                path.write_bytes(b'no checkpoint')

    train(STEADY, act=act)
    errors = [line for line in log_of(tmp_path / 'work').splitlines() if ' - ERROR - ' in line]
    assert len(errors) == 3
    assert all(RESTART_CHECKPOINT in error and 'goes on' in error for error in errors)
    assert origins(tmp_path / 'work') == {epoch: epoch - 1 for epoch in range(2, 11)}


def test_resumed_run_without_the_checkpoint_says_so_at_once(train, tmp_path):
    train(STEADY)
    (tmp_path / 'work' / RESTART_CHECKPOINT).unlink()
    options = dict(resume=True, load_from=str(tmp_path / 'work' / 'epoch_4.pth'))
    with pytest.raises(FileNotFoundError, match=rf'{RESTART_CHECKPOINT} is missing.*custom_hooks'):
        train(STEADY, **options)
    assert not WitnessHook.seen


def test_ranks_restart_alike(tmp_path):
    """``SameOnAllRanksHook`` compares them before every epoch."""
    toy.write_data_set(tmp_path)
    log = toy.train(
        toy.write_config(tmp_path, **toy.scripted(STEADY), **{'train_dataloader.batch_size': 1}),
        *('--launcher', 'pytorch', '--work-dir', tmp_path / 'work'),
        launcher=toy.two_processes(),
    )
    assert log.count('restart from the best checkpoint of the augmented stages, of epoch 2') == 3


def test_prolonged_run_has_its_last_stage_ahead(train, tmp_path):
    """Of 14 epochs the last stage begins after 8: what it resumes from lies in it, or before."""
    train(STEADY)
    for old in (tmp_path / 'work').glob('epoch_[89].pth'):
        old.unlink()
    (tmp_path / 'work' / 'epoch_10.pth').unlink()
    resume = dict(resume=True, load_from=str(tmp_path / 'work' / 'epoch_7.pth'))
    runner = train([*STEADY, *[0.1] * 4], **resume, **{'train_cfg.max_epochs': 14})
    assert runner.recipe.stages[2] == 8
    found = origins(tmp_path / 'work')
    # Epoch 8 is augmented again; the restart that was due after epoch 7 isn't any more.
    assert [found[epoch] for epoch in (9, 10, 11)] == [2, 9, 2]
    decays = [WitnessHook.seen[epoch]['decay'] for epoch in (7, 8)]
    assert decays[0] > decays[1]
    assert started_from(7, tmp_path / 'work' / 'epoch_7.pth')


@pytest.mark.parametrize(
    ('numbers', 'word'),
    [
        (dict(restart_decay=1.0), 'restart_decay'),
        (dict(restart_decay=-0.1), 'restart_decay'),
        (dict(decay_step=-1), 'decay_step'),
        (dict(begin=-1), 'begin'),
    ],
)
def test_bad_numbers(numbers, word):
    with pytest.raises(ValueError, match=word):
        EMARestartHook(**numbers)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'recipe': None, 'auto_scale_lr': None}, 'restart_decay'),
        ({'default_hooks.checkpoint.save_best': None}, 'save_best'),
    ],
)
def test_what_it_needs_is_named(train, options, words):
    hooks = [
        dict(type='DenseO2OScheduleHook', stages=(1, 2, 3)),
        dict(type='ExpWarmupEMAHook'),
        dict(type='EMARestartHook'),
    ]
    scheduler = [dict(type='FlatCosineLR', warmup_iters=1, cosine_begin=2, cosine_end=3)]
    with pytest.raises(ValueError, match=words):
        train(STEADY, custom_hooks=hooks, param_scheduler=scheduler, **options)
