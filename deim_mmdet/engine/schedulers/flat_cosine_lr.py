"""Learning-rate schedule of DEIM: quadratic warm-up, flat, cosine, constant."""

import math

from mmdet.registry import PARAM_SCHEDULERS

from ... import compat
from ...utils.errors import UserError


def flat_cosine_factor(
    iteration: int, warmup_iters: int, cosine_begin: int, cosine_end: int, lr_gamma: float
) -> float:
    """Factor of the base learning rate at an iteration (DEIM, arXiv 2412.04234, section 4.1).

    The factor is ``(iteration / warmup_iters)²`` in the warm-up and then 1 until ``cosine_begin``.
    From there it follows half a cosine to ``lr_gamma`` at ``cosine_end``, where it stays.

    Args:
        iteration: Counted from 0.
        warmup_iters: Iterations of the warm-up; 0 for none.
        cosine_begin: Iteration at which the factor starts to fall.
        cosine_end: Iteration from which on it is constant.
        lr_gamma: The factor at the end.
    """
    if iteration < warmup_iters:
        return (iteration / warmup_iters) ** 2
    if iteration <= cosine_begin:
        return 1.0
    if iteration >= cosine_end:
        return lr_gamma
    progress = (iteration - cosine_begin) / (cosine_end - cosine_begin)
    return lr_gamma + (1 - lr_gamma) * 0.5 * (1 + math.cos(math.pi * progress))


@PARAM_SCHEDULERS.register_module()
class FlatCosineLR(compat.scheduler_class()):
    """:func:`flat_cosine_factor` times each parameter group's own base rate, by iteration.

    A resumed run continues at its iteration with the numbers and base rates of its own config. A
    checkpoint restores only the position in the schedule, so that both can be changed.

    Args:
        optimizer: Optimiser or its wrapper.
        warmup_iters: Iterations of warm-up, 0 or more. This argument and the next two are required;
            :class:`~deim_mmdet.engine.DEIMRunner` derives those that the config doesn't give.
        cosine_begin: Iteration at which the learning rate starts to fall.
        cosine_end: Iteration from which on it is constant.
        lr_gamma: Factor of the learning rate at the end, positive.
        last_step: Iteration to start after; -1 starts anew.
        by_epoch: Must be False; the argument exists so that configs can say so.
        verbose: Print each value.
        **kwargs: ``begin`` and ``end`` of mmengine's schedulers.

    Raises:
        ValueError: A number is missing or out of range, or ``by_epoch`` is set.
    """

    def __init__(
        self,
        optimizer,
        warmup_iters: int | None = None,
        cosine_begin: int | None = None,
        cosine_end: int | None = None,
        lr_gamma: float = 0.5,
        last_step: int = -1,
        by_epoch: bool = False,
        verbose: bool = False,
        **kwargs,
    ) -> None:
        if by_epoch:
            raise UserError('FlatCosineLR works by iteration: set by_epoch=False')
        numbers = dict(warmup_iters=warmup_iters, cosine_begin=cosine_begin, cosine_end=cosine_end)
        missing = [name for name, number in numbers.items() if number is None]
        if missing:
            raise UserError(
                f'FlatCosineLR has no {", ".join(missing)}: give them, or train with '
                "runner_type='DEIMRunner' (RUNNERS.build(cfg) or DEIMRunner.from_cfg(cfg) in place "
                'of Runner.from_cfg(cfg)) and a recipe in the config, from which it derives them'
            )
        if warmup_iters < 0 or not 0 <= cosine_begin <= cosine_end:
            raise UserError(
                'FlatCosineLR needs warmup_iters >= 0 and 0 <= cosine_begin <= cosine_end, but got '
                f'{warmup_iters}, {cosine_begin} and {cosine_end}'
            )
        if lr_gamma <= 0:
            raise UserError(f'FlatCosineLR needs lr_gamma > 0, but got {lr_gamma}')
        self.warmup_iters = warmup_iters
        self.cosine_begin = cosine_begin
        self.cosine_end = cosine_end
        self.lr_gamma = lr_gamma
        super().__init__(
            optimizer, 'lr', last_step=last_step, by_epoch=False, verbose=verbose, **kwargs
        )

    def _get_value(self) -> list[float]:
        factor = flat_cosine_factor(
            self.last_step, self.warmup_iters, self.cosine_begin, self.cosine_end, self.lr_gamma
        )
        return [base * factor for base in self.base_values]

    def load_state_dict(self, state_dict: dict) -> None:
        """Take the position in the schedule from a state, and set the rates that belong to it."""
        self.move_to(compat.saved_position(state_dict))

    def move_to(self, iteration: int) -> None:
        """Go to an iteration, counted from 0, and set the rates that belong to it.

        Before ``begin`` and from ``end`` on the rates are those of other schedulers and stay.
        """
        self.last_step = min(max(iteration, self.begin - 1), self.end - 1) - self.begin
        groups = self.optimizer.param_groups
        if self.begin <= iteration < self.end:
            for group, value in zip(groups, self._get_value(), strict=True):
                group[self.param_name] = value
        compat.set_position(self, iteration, [group[self.param_name] for group in groups])
