"""Learning-rate schedule of DEIM: quadratic warm-up, flat, cosine, constant."""

import math

from mmdet.registry import PARAM_SCHEDULERS
from mmengine.optim import _ParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin


def flat_cosine_factor(
    iteration: int, warmup_iters: int, cosine_begin: int, cosine_end: int, lr_gamma: float
) -> float:
    """Factor of the base learning rate at a 0-based iteration (DEIM, section 4.1).

    ``(i / warmup_iters)²`` while warming up, 1 until ``cosine_begin``, then along half a cosine to
    ``lr_gamma`` at ``cosine_end``, and ``lr_gamma`` from there on.
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
class FlatCosineLR(LRSchedulerMixin, _ParamScheduler):
    """:func:`flat_cosine_factor` times each parameter group's own base rate, by iteration.

    A resumed run continues at its iteration with the numbers of its own config, so that training
    can be prolonged: of a checkpoint only the position in the schedule is restored.

    Args:
        optimizer: Optimiser or its wrapper.
        warmup_iters: Iterations of warm-up, from 0.
        cosine_begin: Iteration at which the learning rate starts to fall.
        cosine_end: Iteration from which on it is constant.
        lr_gamma: Factor at the end, positive.
        last_step: Iteration to start after; -1 starts anew.
        verbose: Print each value.
        by_epoch: Only False is supported; there so that configs can say so.
        **kwargs: ``begin`` and ``end`` of mmengine's schedulers.

    Raises:
        ValueError: A number is out of range or ``by_epoch`` is set.
    """

    def __init__(
        self,
        optimizer,
        warmup_iters: int,
        cosine_begin: int,
        cosine_end: int,
        lr_gamma: float = 0.5,
        last_step: int = -1,
        by_epoch: bool = False,
        verbose: bool = False,
        **kwargs,
    ) -> None:
        if by_epoch:
            raise ValueError('FlatCosineLR works by iteration: set by_epoch=False')
        if warmup_iters < 0 or not 0 <= cosine_begin <= cosine_end:
            raise ValueError(
                'FlatCosineLR needs warmup_iters >= 0 and 0 <= cosine_begin <= cosine_end, but got '
                f'{warmup_iters}, {cosine_begin} and {cosine_end}'
            )
        if lr_gamma <= 0:
            raise ValueError(f'FlatCosineLR needs lr_gamma > 0, but got {lr_gamma}')
        self.warmup_iters = warmup_iters
        self.cosine_begin = cosine_begin
        self.cosine_end = cosine_end
        self.lr_gamma = lr_gamma
        super().__init__(optimizer, last_step=last_step, by_epoch=False, verbose=verbose, **kwargs)

    def _get_value(self) -> list[float]:
        factor = flat_cosine_factor(
            self.last_step, self.warmup_iters, self.cosine_begin, self.cosine_end, self.lr_gamma
        )
        return [base * factor for base in self.base_values]

    def load_state_dict(self, state_dict: dict) -> None:
        position = ('last_step', '_global_step', 'base_values', '_last_value')
        super().load_state_dict({key: state_dict[key] for key in position})
