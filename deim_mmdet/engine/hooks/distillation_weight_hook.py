"""Lets the weight of a distillation follow the encoder's share of the gradient."""

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from torch import Tensor
from torch.nn.utils import get_total_norm

from ...models.losses import TeacherDistillation
from ...utils.errors import UserError
from ...utils.host_reads import allowed_sync
from ..checks import bare_detector, check_counts_epochs


@HOOKS.register_module()
class DistillationWeightHook(Hook):
    """Hands the encoder's share of the gradient to the criterion's distillation, epoch by epoch.

    The share is the norm of the gradient of the transformer layer in the neck, divided by the norm
    of the gradient of all parameters, averaged over the steps of an epoch; see
    :class:`~deim_mmdet.models.losses.TeacherDistillation`. It is computed on the device, and read
    once an epoch. A gradient's scale and clipping don't change it. All processes have the same
    gradients, and so the same weight of the loss. The log shows the weight as ``distill_weight``. A
    resumed run goes on with the weight of its checkpoint.

    Raises:
        TypeError: The model is no :class:`~deim_mmdet.models.detectors.DEIMDetector`, or the loop
            doesn't count epochs.
        ValueError: The criterion has no ``TeacherDistillation`` among its terms, or several.
    """

    # Before the checkpoint of the epoch is written.
    priority = 'NORMAL'

    def before_train(self, runner) -> None:
        check_counts_epochs(self, runner.train_loop)
        self._detector = bare_detector(self, runner.model)
        terms = self._detector.bbox_head.criterion.auxiliary_terms.values()
        found = [term for term in terms if isinstance(term, TeacherDistillation)]
        if len(found) != 1:
            raise UserError(
                'DistillationWeightHook needs one TeacherDistillation among criterion.terms, found '
                f'{len(found)}: give it, or take the hook out of custom_hooks'
            )
        [self._distillation] = found
        self._log_weight(runner)
        self._shares: list[Tensor] = []
        self._handle = runner.optim_wrapper.optimizer.register_step_pre_hook(self._measure)

    def after_train(self, runner) -> None:
        self._handle.remove()

    def _measure(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        """Note the share of one step; the optimiser calls it when all gradients are complete."""
        of_encoder, of_all = (
            [p.grad for p in part.parameters() if p.grad is not None]
            for part in (self._detector.neck.encoder, self._detector)
        )
        # A step that is left out has no gradients.
        if of_encoder:
            self._shares.append(get_total_norm(of_encoder) / get_total_norm(of_all))

    def after_train_epoch(self, runner) -> None:
        shares, self._shares = self._shares, []
        if not shares:
            return
        with allowed_sync():
            share = torch.stack(shares).mean().item()
        self._distillation.follow(share)
        weight = self._log_weight(runner)
        runner.logger.info(
            f"The encoder's share of the gradient was {share:.3g}, to be "
            f'{self._distillation.target_share:g}: distill_weight is {weight:.4g} now'
        )

    def _log_weight(self, runner) -> float:
        """Hand the weight to the log, and return it."""
        weight = self._distillation.weight.item()
        runner.message_hub.update_scalar('train/distill_weight', weight)
        return weight
