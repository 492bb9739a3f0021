"""Hands a recipe's numbers to the parts of a training that take them."""

from dataclasses import replace
from typing import Any

from mmdet.registry import PARAM_SCHEDULERS

from ..utils.components import is_component
from .hooks import DenseO2OScheduleHook, EMARestartHook, ExpWarmupEMAHook
from .hooks.dense_o2o_schedule_hook import late_criterion
from .recipe import Recipe, with_stages
from .schedulers import FlatCosineLR

# The numbers of a recipe that FlatCosineLR takes.
SCHEDULE = ('warmup_iters', 'cosine_begin', 'cosine_end', 'lr_gamma')


def apply_recipe(runner, recipe: Recipe) -> Recipe:
    """Give a recipe's numbers to optimiser, schedulers and hooks where the config gives none.

    Args:
        runner: Runner of a training. Its optimiser is built; its schedulers still are configs.
        recipe: The derived numbers.

    Returns:
        The numbers in force. Those that the config gives are the config's; those that no part of
        the training uses are None.
    """
    for group in runner.optim_wrapper.param_groups:
        group['lr'] *= recipe.lr_scale
    for hook in runner.hooks:
        if isinstance(hook, DenseO2OScheduleHook) and hook.stages is not None:
            recipe = with_stages(recipe, hook.stages)
    in_force: dict[str, Any] = dict.fromkeys((
        *('warmup_iters', 'lr_gamma', 'stages', 'ema_decay', 'ema_warmup_iters'),
        *('ema_restart_decay', 'ema_restart_step', 'restart_epoch', 'matcher_change_epoch'),
    ))  # fmt: skip
    schedulers = runner.param_schedulers
    for scheduler in schedulers if isinstance(schedulers, list | tuple) else [schedulers]:
        if isinstance(scheduler, FlatCosineLR):
            in_force.update({name: getattr(scheduler, name) for name in SCHEDULE})
        elif is_component(PARAM_SCHEDULERS, scheduler, FlatCosineLR):
            in_force.update(
                {name: scheduler.setdefault(name, getattr(recipe, name)) for name in SCHEDULE}
            )
    for hook in runner.hooks:
        if isinstance(hook, DenseO2OScheduleHook):
            hook.set_default(recipe.stages, recipe.matcher_change_epoch)
            in_force.update(stages=hook.stages)
            if late_criterion(runner.model) is not None:
                in_force.update(matcher_change_epoch=hook.matcher_change_epoch)
        elif isinstance(hook, ExpWarmupEMAHook):
            hook.set_default(decay=recipe.ema_decay, warmup_iters=recipe.ema_warmup_iters)
            numbers = hook.ema_cfg
            in_force.update(ema_decay=numbers['decay'], ema_warmup_iters=numbers['warmup_iters'])
        elif isinstance(hook, EMARestartHook):
            # Elsewhere the hook follows the stages, which the config may give.
            begins_late = recipe.restart_epoch != recipe.stages[2]
            begin = recipe.restart_epoch if begins_late else None
            search = recipe.ema_restart_step is not None
            hook.set_default(recipe.ema_restart_decay, recipe.ema_restart_step, begin, search)
            in_force.update(ema_restart_decay=hook.restart_decay, ema_restart_step=hook.decay_step)
            in_force.update(restart_epoch=hook.begin)
    return replace(recipe, **in_force)
