"""Going on from a checkpoint with the settings of the present config, whatever they were before.

A checkpoint holds the learning rates, and counts iterations by the batches, of the run that wrote
it. mmengine restores both, so that a changed option would be printed and not used. Here a resumed
run keeps the *position* (finished epochs) and the state (weights, average, moments) of its
checkpoint; every number that follows from the config is the present config's.
"""

import logging
import zlib
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor

from .. import compat
from .checks import bare_model
from .hooks.exp_warmup_ema import ExpWarmupEMAHook
from .schedulers import FlatCosineLR

#: Name of the settings in the message hub, hence in checkpoints.
SETTINGS = 'settings'
# How they are called in the log.
TITLES = dict(
    epochs='epochs',
    iters_per_epoch='iterations an epoch',
    batch_size='images per optimiser step',
    accumulation='iterations per optimiser step',
    processes='processes',
    lr='learning rate',
)


def current_settings(runner) -> dict[str, Any]:
    """The numbers of a training that decide on its schedule.

    Args:
        runner: Runner of a training whose loop and optimiser are built.
    """
    wrapper = runner.optim_wrapper
    loader = runner.train_dataloader
    per_process = loader.batch_size or loader.batch_sampler.batch_size
    accumulation = compat.accumulated_iterations(wrapper)
    base = wrapper.base_param_settings
    return dict(
        epochs=runner.max_epochs,
        iters_per_epoch=len(loader),
        batch_size=per_process * runner.world_size * accumulation,
        accumulation=accumulation,
        processes=runner.world_size,
        optimizer=optimizer_name(wrapper),
        parameters=parameters_digest(runner),
        lr=base.get('initial_lr', base['lr']),
    )


def optimizer_name(optim_wrapper: OptimWrapper) -> str:
    """The optimiser's class, for comparison with that of a checkpoint."""
    return type(optim_wrapper.optimizer).__name__


def group_settings(optim_wrapper: OptimWrapper) -> list[dict[str, Any]]:
    """Rates, decays and the like of all parameter groups, without the parameters."""
    return [
        {key: value for key, value in group.items() if key != 'params'}
        for group in optim_wrapper.param_groups
    ]


def settings_of(checkpoint: dict) -> dict[str, Any]:
    """The :func:`current_settings` of the run that wrote a checkpoint; {} where not known."""
    hub = checkpoint.get('message_hub') or {}
    return (hub.get('runtime_info') or {}).get(SETTINGS, {})


def check_same_optimizer(runner, checkpoint: dict) -> None:
    """Look for what a resumed run can't change about its optimiser.

    Args:
        runner: Runner of the resumed training.
        checkpoint: What it resumes from.

    Raises:
        ValueError: The optimiser is another, or groups its parameters otherwise.
    """
    remedy = 'start a new training from the checkpoint instead (load_from, without resume)'
    before = settings_of(checkpoint).get('optimizer')
    now = optimizer_name(runner.optim_wrapper)
    if before not in (None, now):
        raise ValueError(
            f'the checkpoint holds the state of {before}, but optim_wrapper.optimizer is {now}: a '
            f'resumed run cannot change it; {remedy}'
        )
    if not _same_parameters(runner, checkpoint.get('optimizer') or {}, settings_of(checkpoint)):
        raise ValueError(
            'the checkpoint has its parameters in other groups than the config makes: a resumed '
            f'run cannot change optim_wrapper.paramwise_cfg so; {remedy}'
        )


def _same_parameters(runner, saved: dict, settings: dict[str, Any]) -> bool:
    """Whether the n-th parameter of a saved optimiser is the n-th of the runner's."""
    groups = runner.optim_wrapper.optimizer.param_groups
    saved_groups = saved.get('param_groups', groups)
    if [len(g['params']) for g in saved_groups] != [len(g['params']) for g in groups]:
        return False
    if 'parameters' in settings:
        return settings['parameters'] == parameters_digest(runner)
    # Version 0.1 didn't note their names.
    parameters = [parameter for group in groups for parameter in group['params']]
    return all(
        value.shape in ((), parameters[index].shape)
        for index, state in saved.get('state', {}).items()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def parameters_digest(runner) -> str:
    """A short text that differs where an optimiser has other parameters, or in another order."""
    names = {id(value): name for name, value in bare_model(runner.model).named_parameters()}
    groups = runner.optim_wrapper.optimizer.param_groups
    listed = [[names.get(id(value), '') for value in group['params']] for group in groups]
    return f'{zlib.crc32(repr(listed).encode()):08x}'


def apply_settings(runner, fresh: list[dict[str, Any]]) -> None:
    """Put the present config's numbers in place of those that a checkpoint has brought.

    Args:
        runner: Runner that has just resumed.
        fresh: :func:`group_settings` of the optimiser before that.
    """
    _move_to_epoch(runner)
    for group, settings in zip(runner.optim_wrapper.param_groups, fresh, strict=True):
        before = group.get('initial_lr', group['lr'])
        now = settings.get('initial_lr', settings['lr'])
        if now != before:
            # For schedulers that go on from the present rate.
            group['lr'] *= now / before
        group.update({key: value for key, value in settings.items() if key != 'lr'})
    for scheduler in runner.param_schedulers or ():
        if isinstance(scheduler, FlatCosineLR):
            scheduler.move_to(runner.iter)
        elif getattr(scheduler, 'param_name', None) == 'lr':
            groups = runner.optim_wrapper.param_groups
            scheduler.base_values = [group['initial_lr'] for group in groups]


def _move_to_epoch(runner) -> None:
    """Count iterations, and updates of the average, by the present number of batches."""
    loop = runner.train_loop
    if not isinstance(loop, EpochBasedTrainLoop) or not runner.epoch:
        return
    before = saved_settings(runner).get('iters_per_epoch', runner.iter / runner.epoch)
    now = len(runner.train_dataloader)
    if before == now:
        return
    compat.set_iteration(loop, round(runner.iter * now / before))
    for hook in runner.hooks:
        if isinstance(hook, ExpWarmupEMAHook):
            hook.ema_model.steps.copy_((hook.ema_model.steps * (now / before)).round())


def saved_settings(runner) -> dict[str, Any]:
    """The :func:`current_settings` of the run that wrote the checkpoint; {} where not known."""
    return runner.message_hub.get_info(SETTINGS, {})


def report_changes(runner, before: dict[str, Any]) -> None:
    """Log what a resumed run does otherwise than the one before, and note its settings.

    Args:
        runner: Runner of a training that is about to begin.
        before: Settings of the checkpoint.
    """
    now = current_settings(runner)
    runner.message_hub.update_info(SETTINGS, now)
    changes = [
        f'{title} {before[name]:.6g} -> {now[name]:.6g}'
        for name, title in TITLES.items()
        if name in before and before[name] != now[name]
    ]
    if changes:
        runner.logger.info(
            f'Resumed after epoch {runner.epoch} with other settings than before: '
            f'{", ".join(changes)}. From here on the schedule is that of the new settings'
        )
    if runner.epoch >= runner.max_epochs:
        print_log(
            f'The checkpoint has {runner.epoch} finished epochs and train_cfg.max_epochs='
            f'{runner.max_epochs}: nothing is left to train. More epochs: --epochs',
            logger='current',
            level=logging.WARNING,
        )
