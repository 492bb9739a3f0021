"""Keeps NaN and infinity out of the weights: stops at the step, or leaves a few steps out."""

import math

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ...utils.arguments import check_count
from ..checks import bare_model, enumerate_names, non_finite_names
from ..faults import RunFault
from ..optimizers import guarded

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

    It acts between the forward and the backward pass (by a forward hook on the detector) and
    between the backward pass and the optimiser. Gradients are looked at before they are clipped:
    clipping by norm would spread one NaN to all of them, and clipping by value would turn an
    infinity into a usual number. Where they are clipped, the runner therefore has a
    :func:`~deim_mmdet.engine.optimizers.guarded` optimiser wrapper in the place of its own while it
    trains. In distributed training all ranks take the same decision, and each
    names the terms and images of all. Where a ``GradScaler`` looks for infinite gradients and
    skips their steps itself (``AmpOptimWrapper``), gradients are left to it, unless it is disabled
    and looks for nothing. A checkpoint with a weight that isn't finite is not written.

    The first ``skip_non_finite`` bad steps of a run are left out. Such a step changes neither
    weights nor optimiser, nor the average of ``ExpWarmupEMAHook``, nor the running statistics that
    its forward pass has updated; the learning rate goes on. With gradient accumulation the step
    is left out for all its iterations; from the bad one on they don't reach the average either.
    The number of steps left out is kept in the message hub as ``skipped_steps``, and so survives
    a resume. Weights that aren't finite already end the training in any case.

    Args:
        skip_non_finite: How many steps of a run may be left out. Default 0: the first ends it.

    Raises:
        NonFiniteLossError: Names the terms and the images of the batch.
        NonFiniteGradientError: Names the parameters and the images.
        NonFiniteWeightError: Names the weights.
        ValueError: ``skip_non_finite`` is negative or no integer.
    """

    priority = 'VERY_LOW'

    def __init__(self, skip_non_finite: int = 0) -> None:
        self.skip_non_finite = check_count(self, 'skip_non_finite', skip_non_finite, lowest=0)
        #: Whether the step that the present iteration belongs to is left out.
        self.skipping = False
        self._undo = False
        self._checked = False
        # Paths by iteration, of those that make up the present step.
        self._images: list[list[str]] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def before_train(self, runner) -> None:
        self._runner = runner
        self._model = bare_model(runner.model)
        self._wrapper = runner.optim_wrapper
        if not isinstance(self._wrapper, OptimWrapper):
            raise TypeError(
                f'{type(self).__name__} works with one optimiser, but optim_wrapper is a '
                f'{type(self._wrapper).__name__}'
            )
        self._parameters = dict(self._model.named_parameters())
        self._handles = [
            self._model.register_forward_hook(self._check_losses, with_kwargs=True),
            self._wrapper.optimizer.register_step_pre_hook(self._before_optimizer_step),
        ]
        scaler = getattr(self._wrapper, 'loss_scaler', None)
        self._scaled = scaler is not None and scaler.is_enabled()
        if self._wrapper.clip_grad_kwargs and not self._scaled:
            runner.optim_wrapper = guarded(self._wrapper, self._before_clipping)

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()
        runner.optim_wrapper = self._wrapper

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.skip_non_finite:
            self._buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._undo:
            for buffer, before in self._buffers:
                buffer.copy_(before)
            self._undo = False
        if self._wrapper.should_update():
            self.skipping = False
            self._images.clear()

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        parts = ('state_dict', 'ema_state_dict')
        self._refuse_weights({part: checkpoint.get(part, {}) for part in parts})

    def _check_losses(self, model: nn.Module, args: tuple, kwargs: dict, losses):
        """Forward hook: what it returns replaces the losses."""
        if not model.training or not isinstance(losses, dict):
            return None
        samples = kwargs.get('data_samples') or (args[1] if len(args) > 1 else None) or []
        self._images.append([str(sample.get('img_path', 'unknown')) for sample in samples])
        terms = {
            name: sum(value) if isinstance(value, (list, tuple)) else value
            for name, value in losses.items()
        }
        totals = torch.stack([value.detach().float().sum() for value in terms.values()])
        # The largest over ranks of the number of bad terms: any rank's stops all.
        bad = (~totals.isfinite()).sum()
        all_reduce(bad, 'max')
        # The only transfer from the device where all is well.
        if not bad.item():
            return None
        values = dict(zip(terms, totals.tolist(), strict=True))
        wrong = [f'{name} = {v}' for name, v in values.items() if not math.isfinite(v)]
        self._leave_out(NonFiniteLossError, 'loss', wrong, self._images[-1])
        if not wrong:
            return None
        # The other terms as they are for the log, but without their gradients; in place of these
        # zeros for all parameters, so that backward pass, gradient scaler and the other ranks'
        # reduction find what they expect.
        kept = {n: value.detach() for n, value in terms.items() if math.isfinite(values[n])}
        carrier = next(name for name in (*kept, *terms) if 'loss' in name)
        zero = sum(p.sum() * 0 for p in self._parameters.values() if p.requires_grad)
        kept[carrier] = kept.get(carrier, 0) + zero
        return kept

    def _before_clipping(self) -> None:
        """Called once the gradients of a step are complete."""
        self._check_gradients()
        self._checked = True
        if self.skipping:
            self._drop_gradients()

    def _before_optimizer_step(self, optimizer, args: tuple, kwargs: dict) -> None:
        if not self._checked:
            self._check_gradients()
        self._checked = False
        if self.skipping:
            self._drop_gradients()

    def _drop_gradients(self) -> None:
        # Optimisers pass parameters without gradient over: no decay, no change of state.
        self._wrapper.optimizer.zero_grad(set_to_none=True)

    def _check_gradients(self) -> None:
        if self._scaled or self.skipping:
            return
        gradients = {
            name: parameter.grad
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        if get_total_norm([*gradients.values()]).isfinite():
            return
        # Finite norms may still add up to an infinite one.
        wrong = [name for name, grad in gradients.items() if not grad.norm().isfinite()]
        if not wrong:
            return
        images = [image for batch in self._images for image in batch]
        self._leave_out(NonFiniteGradientError, 'gradient', [enumerate_names(wrong)], images)

    def _leave_out(
        self, error: type[NonFiniteError], what: str, wrong: list[str], images: list[str]
    ) -> None:
        """Count a bad step, and log it or raise.

        Args:
            error: What to raise where the run may not go on.
            what: ``'loss'`` or ``'gradient'``.
            wrong: Descriptions of what isn't finite on this rank.
            images: Paths of the images of this rank that it was computed from.
        """
        self._refuse_weights(self._parameters)
        ranks = all_gather_object((wrong, images))
        wrong = list(dict.fromkeys(entry for names, _ in ranks for entry in names))
        images = [image for names, paths in ranks if names for image in paths]
        hub = self._runner.message_hub
        count = hub.get_info(SKIPPED, 0) + (not self.skipping)
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
        self.skipping = self._undo = True
        self._runner.logger.warning(
            f'{message}. This step is left out, number {count} of at most {self.skip_non_finite}'
        )

    def _refuse_weights(self, state: dict) -> None:
        names = non_finite_names(state)
        if names:
            raise NonFiniteWeightError(
                f'weights are NaN or infinite in epoch {self._runner.epoch + 1}, iteration '
                f'{self._runner.iter + 1}: {enumerate_names(names)}. Go on from the last '
                'checkpoint, which is not touched (--resume), with a lower learning rate '
                '(optim_wrapper.optimizer.lr), or in full precision'
            )
