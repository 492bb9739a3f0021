"""Keeps NaN and infinity out of the weights: stops at the step, or leaves a few steps out."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import EMAHook, Hook
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from ... import compat
from ...utils.arguments import check_count
from ...utils.host_reads import allowed_sync
from ...utils.text import some
from ..checks import bare_model, check_single_optimizer, non_finite_names
from ..faults import NonFiniteGradientError, NonFiniteLossError, NonFiniteWeightError

SKIPPED = 'skipped_steps'


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Checks every loss term and the gradients of every step before they reach the weights.

    The check takes place where the optimiser's wrapper clips gradients, also if nothing is clipped.
    In one transfer it reads the norm of the gradients, which the log needs anyway, and whether all
    losses are finite. With gradient accumulation it reads the losses of each earlier iteration
    after its backward pass. All processes take the same decision, and each names the terms and
    images of all. A ``GradScaler`` at work skips steps with infinite gradients itself: they neither
    count nor end the training. A norm that isn't finite is not logged. A checkpoint with a weight
    that isn't finite is not written.

    The first ``skip_non_finite`` bad steps of a run are left out: weights, optimiser, the average
    of ``ExpWarmupEMAHook``, the model's buffers and the scale of a ``GradScaler`` stay as they
    were. With gradient accumulation buffers and average keep what came from the iterations before
    the bad one. The message hub counts these steps as ``skipped_steps``, across resumes. Weights
    that already aren't finite always end the training.

    Args:
        skip_non_finite: How many steps of a run may be left out. With 0, the first bad one ends it.

    Raises:
        NonFiniteLossError: A loss isn't finite; the message names terms and images of the batch.
        NonFiniteGradientError: A gradient isn't finite; it names the parameters and the images.
        NonFiniteWeightError: A weight isn't finite; it names the weights.
        ValueError: ``skip_non_finite`` is negative or no integer.
        TypeError: The training has several optimisers (an ``OptimWrapperDict``).
    """

    # Before the hooks that log losses and average weights.
    priority = 'HIGHEST'

    def __init__(self, skip_non_finite: int = 0) -> None:
        self.skip_non_finite = check_count(self, 'skip_non_finite', skip_non_finite, lowest=0)
        #: Whether the step that the present iteration belongs to is left out.
        self.skipping = False
        # Losses of the present iteration, and the samples of each iteration of the step.
        self._losses: dict[str, list[Tensor]] = {}
        self._samples: list[list] = []
        # What a bad step may change without the optimiser.
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._scale: dict | None = None

    def before_train(self, runner) -> None:
        wrapper = runner.optim_wrapper
        check_single_optimizer(self, wrapper)
        self._runner, self._wrapper, self._model = runner, wrapper, bare_model(runner.model)
        self._handle = self._model.register_forward_hook(self._note_losses)
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
        self._samples.append(_samples_of(data_batch))
        if self.skip_non_finite:
            self._buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]

    def _note_losses(self, model: nn.Module, args: tuple, losses) -> None:
        """Forward hook of the detector."""
        if model.training and isinstance(losses, dict):
            self._losses = {
                # Without the graph of the iteration, which would stay in memory.
                name: [part.detach() for part in (loss if isinstance(loss, list) else [loss])]
                for name, loss in losses.items()
            }

    def _check_and_clip(self, parameters: list[nn.Parameter], **arguments) -> float | None:
        """Check and clip; the wrapper calls it once the gradients of a step are complete.

        Args:
            parameters: The parameters that have a gradient.
            arguments: The wrapper's ``clip_grad``.

        Returns:
            The norm of all gradients for the log, where they are clipped by it.
        """
        norm = get_total_norm([p.grad for p in parameters], arguments.get('norm_type', 2.0))
        number = None if self.skipping else self._read(norm)
        if number is None:
            # Optimisers skip parameters without gradient: no decay, no change of state.
            for parameter in parameters:
                parameter.grad = None
            if self.skipping and self._scaler is not None:
                self._scale = self._scaler.state_dict()
        elif self._clipping[0] is clip_grad_norm_:
            clip_grads_with_norm_(parameters, arguments['max_norm'], norm)
            return number
        elif self._clipping[0] is not None:
            # By value this turns an infinity into a usual number.
            self._clipping[0](parameters, **arguments)
        return None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self._wrapper.should_update() and not self.skipping:
            self._read()
        if not self.skipping:
            return
        for buffer, before in self._buffers:
            buffer.copy_(before)
        if self._scale is not None:
            self._scaler.load_state_dict(self._scale)
            self._scale = None
        for name, value in list(outputs.items()):
            if not torch.as_tensor(value).isfinite():
                del outputs[name]

    def _read(self, *norm: Tensor) -> float | None:
        """Read whether all losses of the iteration are finite, and the norm of the gradients.

        Args:
            norm: Norm of all gradients, once they are complete.

        Returns:
            The last number read; None where one isn't finite.
        """
        numbers = [loss.float().flatten() for parts in self._losses.values() for loss in parts]
        numbers = torch.cat([*numbers, *(value[None] for value in norm)])
        # NaN or infinite where any number of any process is.
        joint = numbers.sum()
        all_reduce(joint)
        with allowed_sync():
            last, joint = torch.stack([numbers[-1], joint]).tolist()
        if math.isfinite(joint):
            return last
        self._bad_step()
        return None

    def _bad_step(self) -> None:
        """Say what isn't finite, and raise or leave the step out, unless the scaler does."""
        # As they are logged.
        losses = {k: float(sum(part.mean() for part in v)) for k, v in self._losses.items()}
        wrong = [f'{name} = {loss}' for name, loss in losses.items() if not math.isfinite(loss)]
        images = [[str(s.get('img_path', 'unknown')) for s in batch] for batch in self._samples]
        ranks = all_gather_object((wrong, images))
        if any(wrong for wrong, _ in ranks):
            error, what = NonFiniteLossError, 'loss'
            ranks = [(wrong, images[-1:]) for wrong, images in ranks if wrong]
            wrong = dict.fromkeys(term for wrong, _ in ranks for term in wrong)
        elif self._scaler is not None:
            return
        else:
            error, what = NonFiniteGradientError, 'gradient'
            # All processes have the same. Finite norms may add up to an infinite one.
            wrong = non_finite_names({k: v.grad for k, v in self._model.named_parameters()})
            wrong = [some(wrong or ['the norm of all'])]
        self._refuse_weights(dict(self._model.named_parameters()))
        images = [image for _, batches in ranks for batch in batches for image in batch]
        count = self._runner.message_hub.get_info(SKIPPED, 0) + 1
        message = (
            f'non-finite {what} in {self._moment()}: {", ".join(wrong)}. '
            f'Images of the batch: {", ".join(images)}'
        )
        if count > self.skip_non_finite:
            before = f'{self.skip_non_finite} steps were left out before. ' if count > 1 else ''
            raise error(
                f'{message}. {before}The weights are untouched since the last good iteration; '
                'look at these images and their boxes, or lower the learning rate '
                '(optim_wrapper.optimizer.lr)'
            )
        self._runner.message_hub.update_info(SKIPPED, count)
        self.skipping = True
        self._runner.logger.warning(
            f'{message}. This step is left out, number {count} of at most {self.skip_non_finite}'
        )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._refuse_weights({'model': checkpoint['state_dict']})
        # EMAHook puts the average into the checkpoint after this.
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                self._refuse_weights({'average': hook.ema_model.module.state_dict()})

    def _refuse_weights(self, state: dict) -> None:
        if names := non_finite_names(state):
            raise NonFiniteWeightError(
                f'weights are NaN or infinite in {self._moment()}: {some(names)}. Go on from the '
                'last checkpoint, which is not touched (--resume), with a lower learning rate '
                '(optim_wrapper.optimizer.lr), or in full precision'
            )

    def _moment(self) -> str:
        return f'epoch {self._runner.epoch + 1}, iteration {self._runner.iter + 1}'


def _samples_of(data_batch: Any) -> list:
    """Data samples of a batch; mmdet's semi-supervised detectors have several lists by name."""
    samples = data_batch.get('data_samples', ()) if isinstance(data_batch, Mapping) else ()
    if isinstance(samples, Mapping):
        return [sample for branch in samples.values() for sample in branch]
    return [*samples]
