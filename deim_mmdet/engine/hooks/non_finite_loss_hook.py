"""Stops training at the first loss that is not finite, before it reaches the weights."""

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from ..checks import bare_model


class NonFiniteLossError(RuntimeError):
    """A loss term is NaN or infinite."""


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Checks every loss term of every iteration as it leaves the model.

    It acts between the forward and the backward pass (by a forward hook on the detector), so that
    neither the optimiser step nor the EMA sees a bad value, with mixed precision and distributed
    training alike; infinite *gradients*, which a ``GradScaler`` handles, don't concern it. It
    changes nothing and saves nothing.

    Raises:
        NonFiniteLossError: Names the terms and the images of the batch.
    """

    priority = 'VERY_LOW'

    def before_train(self, runner) -> None:
        self._runner = runner
        self._handle = bare_model(runner.model).register_forward_hook(self._check, with_kwargs=True)

    def after_train(self, runner) -> None:
        self._handle.remove()

    def _check(self, model, args: tuple, kwargs: dict, losses) -> None:
        if not model.training or not isinstance(losses, dict):
            return
        terms = {
            name: sum(value) if isinstance(value, (list, tuple)) else value
            for name, value in losses.items()
        }
        # One transfer from the device for all terms.
        totals = torch.stack([value.detach().float().sum() for value in terms.values()])
        finite = torch.isfinite(totals)
        if finite.all():
            return
        values = ', '.join(
            f'{name} = {total}'
            for name, total, good in zip(terms, totals.tolist(), finite.tolist(), strict=True)
            if not good
        )
        samples = kwargs.get('data_samples') or (args[1] if len(args) > 1 else None) or []
        images = ', '.join(str(sample.get('img_path', 'unknown')) for sample in samples)
        raise NonFiniteLossError(
            f'non-finite loss in epoch {self._runner.epoch + 1}, iteration '
            f'{self._runner.iter + 1}: {values}. Images of the batch: {images}. The weights are '
            'untouched since the last good iteration; look at these images and their boxes, or '
            'lower the learning rate (optim_wrapper.optimizer.lr)'
        )
