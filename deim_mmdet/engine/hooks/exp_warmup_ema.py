"""Exponential moving average (EMA) of parameters and buffers, with a decay that is warmed up."""

import math

import torch
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ... import compat
from ...utils.errors import UserError
from .non_finite_loss_hook import NonFiniteLossHook


@MODELS.register_module()
class ExpWarmupEMA(BaseAveragedModel):
    r"""EMA over the whole state dict with decay :math:`d_n = decay (1 - e^{-n / warmup})`.

    ``n`` counts updates from 1. The average of a floating-point entry, parameter or buffer, is
    :math:`\bar x_n = d_n \bar x_{n-1} + (1 - d_n) x_n`, where :math:`x_n` is the model's. Integer
    entries (``num_batches_tracked``) are copied. mmdet's ``ExpMomentumEMA`` (3.3.0) has the same
    decays. But this average starts from the model before its first step instead of after it, copies
    integers, and updates all tensors at once.

    Args:
        model: Model to average; the average starts as a copy of it.
        decay: Final decay, in [0, 1).
        warmup_iters: Time constant of the warm-up in updates; 0 for none.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, warmup_iters: float = 1000) -> None:
        if not 0 <= decay < 1:
            raise UserError(f'ExpWarmupEMA needs a decay in [0, 1), but got {decay}')
        if warmup_iters < 0:
            raise UserError(f'ExpWarmupEMA needs warmup_iters >= 0, but got {warmup_iters}')
        super().__init__(model, update_buffers=True)
        self.decay = decay
        self.warmup_iters = warmup_iters
        self._paired: tuple[nn.Module, list] | None = None

    def decay_at(self, update: int) -> float:
        """Decay of the ``update``-th update, counted from 1."""
        if self.warmup_iters == 0:
            return self.decay
        return self.decay * (1 - math.exp(-update / self.warmup_iters))

    @torch.no_grad()
    def copy_from(self, model: nn.Module) -> None:
        """Set the average to the state of ``model``."""
        for averages, values in self._pairs(model):
            compat.copy_each(averages, values)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the state of ``model`` to the average.

        Its tensors are looked up once: they must not be replaced by others later.
        """
        self.steps += 1
        floats, integers = self._pairs(model)
        get_ema_multi_avg_fn(self.decay_at(int(self.steps)))(*floats, self.steps)
        compat.copy_each(*integers)

    def _pairs(self, model: nn.Module) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Tensors of the average and of ``model``: the floating-point ones, then the integers."""
        if self._paired is None or self._paired[0] is not model:
            source = model.state_dict(keep_vars=True)
            pairs, seen = [([], []), ([], [])], set()
            for name, average in self.avg_parameters.items():
                # A parameter of several names, such as a shared head's, is averaged once.
                if id(source[name]) not in seen:
                    averages, values = pairs[not average.is_floating_point()]
                    averages.append(average)
                    values.append(source[name])
                    seen.add(id(source[name]))
            # In a tuple, so that the model doesn't become a submodule of this one.
            self._paired = (model, pairs)
        return self._paired[1]


@HOOKS.register_module()
class ExpWarmupEMAHook(EMAHook):
    """mmengine's ``EMAHook`` with :class:`ExpWarmupEMA`.

    It updates the average after each training iteration, except for steps that
    ``NonFiniteLossHook`` leaves out. In validation and test the average takes the place of the
    model. In a checkpoint, ``state_dict`` holds the average; ``ema_state_dict`` holds the model in
    training and the number of updates, from which a resumed run goes on with its decay.

    Args:
        decay: Final decay, in [0, 1). If None, :class:`~deim_mmdet.engine.DEIMRunner` sets it.
        warmup_iters: Time constant of the warm-up in updates. If None, ``DEIMRunner`` sets it.
    """

    def __init__(self, decay: float | None = None, warmup_iters: float | None = None) -> None:
        numbers = dict(decay=decay, warmup_iters=warmup_iters)
        super().__init__(
            ema_type='ExpWarmupEMA', **{k: v for k, v in numbers.items() if v is not None}
        )

    def set_default(self, **numbers: float) -> None:
        """Set ``decay`` and ``warmup_iters`` where the config doesn't give them."""
        for name, value in numbers.items():
            self.ema_cfg.setdefault(name, value)

    def before_train(self, runner) -> None:
        super().before_train(runner)
        self._guards = [hook for hook in runner.hooks if isinstance(hook, NonFiniteLossHook)]
        # The average was made before the model's weights were initialised or loaded.
        if self.ema_model.steps == 0:
            self.ema_model.copy_from(self.src_model)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not any(guard.skipping for guard in self._guards):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def restore(self, checkpoint: dict) -> None:
        """Set model and average to those of a checkpoint that was saved with this hook.

        Args:
            checkpoint: Content of the checkpoint; changed in place.
        """
        average, current = checkpoint['state_dict'], checkpoint['ema_state_dict']
        # ``ema_state_dict`` holds the model, with a prefix, and the number of updates.
        for name in average:
            key = f'module.{name}'
            average[name], current[key] = current[key], average[name]
        self.src_model.load_state_dict(average)
        self.ema_model.load_state_dict(current)
