"""Resumes from a checkpoint with the settings of the present config, whatever they were before.

A checkpoint holds the learning rates of the run that wrote it, and counts iterations in the batches
of that run. mmengine restores both: a changed option would be printed, but not used. Here a resumed
run keeps the *position* (finished epochs) and the state (weights, average, moments) of its
checkpoint. It takes every number that follows from the config from the present config. Schedulers
take the steps of a new run up to the position; only where one follows the results of evaluations
(``ReduceOnPlateauLR``) are they restored as saved.
"""

import logging
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor
from torch.optim import Optimizer

from .. import compat
from ..utils.errors import UserError
from .checks import bare_model
from .hooks.exp_warmup_ema import ExpWarmupEMAHook
from .schedulers import FlatCosineLR

#: Name of the settings in the message hub, and so in checkpoints.
SETTINGS = 'settings'
# Names of the settings in the log.
TITLES = dict(
    epochs='epochs',
    iters_per_epoch='iterations an epoch',
    batch_size='images per optimiser step',
    accumulation='iterations per optimiser step',
    processes='processes',
    lr='learning rate',
)


def current_settings(runner) -> dict[str, Any]:
    """The numbers of a training that determine its schedule.

    Args:
        runner: Runner of a training whose loop and optimiser are built.
    """
    wrapper = runner.optim_wrapper
    loader = runner.train_dataloader
    per_process = loader.batch_size or loader.batch_sampler.batch_size
    accumulation = compat.accumulated_iterations(wrapper)
    # Beside several groups mmengine keeps the optimiser's own numbers, as the last of all.
    base = wrapper.param_groups[-1]
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
    """Name of the optimiser's class, for comparison with that of a checkpoint."""
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
    """Refuse changes of the optimiser that a resumed run can't make.

    Args:
        runner: Runner of the resumed training.
        checkpoint: The checkpoint that it resumes from.

    Raises:
        ValueError: The optimiser is another, or groups its parameters differently.
    """
    remedy = 'start a new training from the checkpoint instead (load_from, without resume)'
    before = settings_of(checkpoint).get('optimizer')
    now = optimizer_name(runner.optim_wrapper)
    if before not in (None, now):
        raise UserError(
            f'the checkpoint holds the state of {before}, but optim_wrapper.optimizer is {now}: a '
            f'resumed run cannot change it; {remedy}'
        )
    if not _same_parameters(runner, checkpoint.get('optimizer') or {}, settings_of(checkpoint)):
        raise UserError(
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
    # Version 0.1 didn't save their names.
    parameters = [parameter for group in groups for parameter in group['params']]
    return all(
        value.shape in ((), parameters[index].shape)
        for index, state in saved.get('state', {}).items()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def parameters_digest(runner) -> str:
    """A short text that differs for other parameters of the optimiser, or another order of them."""
    names = {id(value): name for name, value in bare_model(runner.model).named_parameters()}
    groups = runner.optim_wrapper.optimizer.param_groups
    listed = [[names.get(id(value), '') for value in group['params']] for group in groups]
    return f'{zlib.crc32(repr(listed).encode()):08x}'


def schedule_states(runner) -> list[dict[str, Any]]:
    """States of all schedulers of a training; it builds those that still are configs."""
    if runner.param_schedulers is None:
        return []
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    return [scheduler.state_dict() for scheduler in runner.param_schedulers]


def apply_settings(runner, groups: list[dict[str, Any]], schedules: list[dict[str, Any]]) -> None:
    """Replace the numbers that a checkpoint has brought by those of the present config.

    Args:
        runner: Runner that has just resumed.
        groups: :func:`group_settings` of the optimiser before it resumed.
        schedules: :func:`schedule_states` before it resumed.
    """
    _move_to_epoch(runner)
    schedulers = runner.param_schedulers or ()
    if any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers):
        _go_on(runner, groups, schedulers)
    else:
        for scheduler, state in zip(schedulers, schedules, strict=True):
            scheduler.load_state_dict(state)
        for group, settings in zip(runner.optim_wrapper.param_groups, groups, strict=True):
            group.update(settings)
        _replay(runner, schedulers)
    match_parameters(runner.optim_wrapper.optimizer)


def _go_on(runner, groups: list[dict[str, Any]], schedulers: Sequence) -> None:
    """Keep the schedulers of a checkpoint, with rates in proportion to the present ones.

    Their steps follow from the results of evaluations, which only the checkpoint knows of.
    """
    for group, settings in zip(runner.optim_wrapper.param_groups, groups, strict=True):
        before, now = (each.get('initial_lr', each['lr']) for each in (group, settings))
        group.update({**settings, 'lr': group['lr'] * now / before if before else now})
    for scheduler in schedulers:
        if isinstance(scheduler, FlatCosineLR):
            scheduler.move_to(runner.iter)
        elif scheduler.param_name == 'lr':
            scheduler.base_values = [g['initial_lr'] for g in runner.optim_wrapper.param_groups]


def _replay(runner, schedulers: Sequence) -> None:
    """Let schedulers take all steps up to the present iteration, as in a new run.

    Most of mmengine's compute a value from the one before, and by rounding alone another way would
    lead to another value. ``FlatCosineLR`` alone needs no steps.
    """
    if all(isinstance(s, FlatCosineLR) and s.begin <= runner.iter < s.end for s in schedulers):
        for scheduler in schedulers:
            scheduler.move_to(runner.iter)
        return
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    # A loop by iterations has a single epoch.
    counts_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
    epoch = len(runner.train_dataloader) if counts_epochs else runner.max_iters
    with warnings.catch_warnings():
        # Of steps without one of the optimiser.
        warnings.simplefilter('ignore')
        for iteration in range(1, runner.iter + 1):
            for scheduler in by_iteration:
                scheduler.step()
            if iteration % epoch == 0:
                for scheduler in by_epoch:
                    scheduler.step()


def match_parameters(optimizer: Optimizer) -> None:
    """Give a loaded state of an optimiser the layout of its parameters.

    A checkpoint may come from a model in another layout, or from an optimiser that wasn't fused.
    Fused kernels read all tensors of a parameter in one order, without a check on a CPU.
    """
    # Counts of steps go to the device where the present form of the optimiser keeps them.
    optimizer.load_state_dict(optimizer.state_dict())
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _move_to_epoch(runner) -> None:
    """Count iterations, and updates of the average, by finished epochs of the present length.

    The batches may have another size than before. And a checkpoint may have been saved within an
    epoch, which begins again.
    """
    loop = runner.train_loop
    if not isinstance(loop, EpochBasedTrainLoop):
        return
    before, now = runner.iter, runner.epoch * len(runner.train_dataloader)
    if before == now:
        return
    compat.set_iteration(loop, now)
    for hook in runner.hooks:
        if isinstance(hook, ExpWarmupEMAHook):
            hook.ema_model.steps.copy_((hook.ema_model.steps * (now / before)).round())


def saved_settings(runner) -> dict[str, Any]:
    """The :func:`current_settings` of the run that wrote the checkpoint; {} where not known."""
    return runner.message_hub.get_info(SETTINGS, {})


def report_changes(runner, before: dict[str, Any]) -> None:
    """Log which settings of a resumed run differ from before, and keep its settings.

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
