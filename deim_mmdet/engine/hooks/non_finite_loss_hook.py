"""Keeps NaN and infinity out of the weights: stops at the step, or leaves a few steps out."""

import math

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from ... import compat
from ...utils.arguments import check_count
from ...utils.text import some
from ..checks import bare_model, non_finite_names
from ..faults import RunFault

SKIPPED = 'skipped_steps'


class NonFiniteError(RunFault):
    """A training has produced NaN or an infinity."""


class NonFiniteLossError(NonFiniteError):
    """A loss term is NaN or infinite."""


class NonFiniteGradientError(NonFiniteError):
    """All loss terms are finite, but not the gradients that follow from them."""


class NonFiniteWeightError(NonFiniteError):
    """Weights, or the running statistics of norms, are NaN or infinite."""


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Checks every loss term and the gradients of every step before they reach the weights.

    It acts where mmengine's optimiser wrapper clips: in training it replaces the wrapper's
    ``clip_func``, also where nothing is clipped. Losses and the norm of all gradients are read from
    the device in one transfer, which the log needs for the norm anyway. Gradients are checked
    before they are clipped: clipping by norm would spread one NaN to all of them, and clipping by
    value would turn an infinity into a usual number. With gradient accumulation the losses of each
    iteration before the last are read after its backward pass.

    In distributed training all processes take the same decision, and each names the terms and
    images of all. A ``GradScaler`` (``AmpOptimWrapper``) looks for infinite gradients and skips
    their steps itself: gradients are left to it, unless it is disabled. A norm that isn't finite is
    not logged. A checkpoint with a weight that isn't finite is not written.

    The first ``skip_non_finite`` bad steps of a run are left out. Such a step doesn't change
    weights, optimiser, the average of ``ExpWarmupEMAHook``, the running statistics that its forward
    pass has updated, and the scale of a ``GradScaler``. The learning rate goes on. The bad terms
    are not logged. With gradient accumulation all iterations of the step are left out; from the bad
    one on they don't reach statistics and average either. The message hub keeps the number of steps
    left out as ``skipped_steps``, so it survives a resume. Weights that already aren't finite
    always end the training.

    Args:
        skip_non_finite: How many steps of a run may be left out. With 0, the first bad one ends it.

    Raises:
        NonFiniteLossError: A loss isn't finite; the message names terms and images of the batch.
        NonFiniteGradientError: A gradient isn't finite; it names the parameters and the images.
        NonFiniteWeightError: A weight isn't finite; it names the weights.
        ValueError: ``skip_non_finite`` is negative or no integer.
    """

    # Before the hooks that log losses and average weights.
    priority = 'HIGHEST'

    def __init__(self, skip_non_finite: int = 0) -> None:
        self.skip_non_finite = check_count(self, 'skip_non_finite', skip_non_finite, lowest=0)
        #: Whether the step that the present iteration belongs to is left out.
        self.skipping = False
        self._scale: dict | None = None
        # The loss terms of this iteration, and the samples by iteration of this step.
        self._losses: dict[str, Tensor | list[Tensor]] = {}
        self._samples: list[list] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def before_train(self, runner) -> None:
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):
            raise TypeError(
                f'{type(self).__name__} works with one optimiser, but optim_wrapper is a '
                f'{type(wrapper).__name__}'
            )
        self._runner, self._wrapper, self._model = runner, wrapper, bare_model(runner.model)
        self._handle = self._model.register_forward_hook(self._note_losses, with_kwargs=True)
        scaler = getattr(wrapper, 'loss_scaler', None)
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        # A wrapper without arguments for clipping would not call the function.
        arguments = wrapper.clip_grad_kwargs or dict(norm_type=2.0)
        self._clipping = compat.set_clipping(wrapper, self._check_and_clip, arguments)

    def after_train(self, runner) -> None:
        self._handle.remove()
        compat.set_clipping(self._wrapper, *self._clipping)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        # True where the iteration before has completed a step.
        if self._wrapper.should_update():
            self.skipping = False
            self._samples.clear()
        if self.skip_non_finite:
            self._buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self._wrapper.should_update() and not self.skipping:
            self._check()
        if not self.skipping:
            return
        for buffer, before in self._buffers:
            buffer.copy_(before)
        if self._scale is not None:
            self._scaler.load_state_dict(self._scale)
            self._scale = None
        for name in [name for name, value in outputs.items() if not math.isfinite(value)]:
            del outputs[name]

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._refuse_weights({'model': checkpoint['state_dict']})
        # EMAHook puts the average into the checkpoint after this.
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                self._refuse_weights({'average': hook.ema_model.module.state_dict()})

    def _note_losses(self, model: nn.Module, args: tuple, kwargs: dict, losses) -> None:
        """Forward hook of the detector."""
        if model.training and isinstance(losses, dict):
            self._losses = losses
            self._samples.append(kwargs.get('data_samples') or [])

    def _check_and_clip(self, parameters: list[nn.Parameter], **arguments) -> float | None:
        """Check and clip; the wrapper calls it once the gradients of a step are complete.

        Args:
            parameters: The parameters that have a gradient.
            arguments: The wrapper's ``clip_grad``.

        Returns:
            The norm of all gradients for the log, where they are clipped by it.
        """
        clip, _ = self._clipping
        options = {k: v for k, v in arguments.items() if k in ('norm_type', 'foreach')}
        norm = get_total_norm([parameter.grad for parameter in parameters], **options)
        figures = None if self.skipping else self._check(norm)
        if figures is None:
            # Optimisers skip parameters without gradient: no decay, no change of state.
            for parameter in parameters:
                parameter.grad = None
            if self.skipping and self._scaler is not None:
                self._scale = self._scaler.state_dict()
        elif clip is clip_grad_norm_:
            clip_grads_with_norm_(parameters, arguments['max_norm'], norm, arguments.get('foreach'))
            return figures[-1]
        elif clip is not None:
            clip(parameters, **arguments)
        return None

    def _check(self, *norm: Tensor) -> list[float] | None:
        """Check the losses of an iteration and the norm of the gradients, in one transfer.

        Args:
            norm: Norm of all gradients, once they are complete.

        Returns:
            Losses and norm; None where one of them isn't finite and the step is left out.
        """
        losses = {
            name: sum(value) if isinstance(value, (list, tuple)) else value
            for name, value in self._losses.items()
        }
        self._losses = {}
        figures = [value.detach().float() for value in (*losses.values(), *norm)]
        figures = torch.stack([value.sum() if value.dim() else value for value in figures])
        # NaN or infinite where any figure of any process is.
        joint = figures.sum()
        all_reduce(joint)
        *values, joint = torch.hstack([figures, joint]).tolist()
        if math.isfinite(joint):
            return values
        values = zip(losses, values, strict=False)
        wrong = [f'{name} = {value}' for name, value in values if not math.isfinite(value)]
        if any(all_gather_object(wrong)):
            self._leave_out(NonFiniteLossError, 'loss', wrong, self._samples[-1:])
        elif self._scaler is None:
            wrong = [
                name
                for name, parameter in self._model.named_parameters()
                if parameter.grad is not None and not parameter.grad.norm().isfinite()
            ]
            # Finite norms may add up to an infinite one.
            wrong = [some(wrong or ['the norm of all'])]
            self._leave_out(NonFiniteGradientError, 'gradient', wrong, self._samples)
        return None

    def _leave_out(
        self, error: type[NonFiniteError], what: str, wrong: list[str], samples: list[list]
    ) -> None:
        """Count a bad step, and log it or raise.

        Args:
            error: What to raise where the run may not go on.
            what: ``'loss'`` or ``'gradient'``.
            wrong: Descriptions of what isn't finite in this process.
            samples: The samples of this process that it was computed from, by iteration.
        """
        self._refuse_weights(dict(self._model.named_parameters()))
        images = [str(s.get('img_path', 'unknown')) for batch in samples for s in batch]
        ranks = all_gather_object((wrong, images))
        wrong = list(dict.fromkeys(entry for names, _ in ranks for entry in names))
        images = [image for names, paths in ranks if names for image in paths]
        hub = self._runner.message_hub
        count = hub.get_info(SKIPPED, 0) + 1
        message = (
            f'non-finite {what} in epoch {self._runner.epoch + 1}, iteration '
            f'{self._runner.iter + 1}: {", ".join(wrong)}. Images of the batch: '
            f'{", ".join(images)}'
        )
        if count > self.skip_non_finite:
            before = f'{self.skip_non_finite} steps were left out before. ' if count > 1 else ''
            raise error(
                f'{message}. {before}The weights are untouched since the last good iteration; '
                'look at these images and their boxes, or lower the learning rate '
                '(optim_wrapper.optimizer.lr)'
            )
        hub.update_info(SKIPPED, count)
        self.skipping = True
        self._runner.logger.warning(
            f'{message}. This step is left out, number {count} of at most {self.skip_non_finite}'
        )

    def _refuse_weights(self, state: dict) -> None:
        names = non_finite_names(state)
        if names:
            raise NonFiniteWeightError(
                f'weights are NaN or infinite in epoch {self._runner.epoch + 1}, iteration '
                f'{self._runner.iter + 1}: {some(names)}. Go on from the last '
                'checkpoint, which is not touched (--resume), with a lower learning rate '
                '(optim_wrapper.optimizer.lr), or in full precision'
            )
