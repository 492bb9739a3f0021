"""Fine-grained localization loss of D-FINE (FGL)."""

import torch
import torch.nn.functional as F
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor, nn


def fine_grained_localization_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the two bins around a target (D-FINE, arXiv 2410.13842, eq. 6).

    Args:
        pred: (N, bins) logits of N distributions.
        target: (N,) position in [0, bins - 1]: the lower bin, plus the share of the way to the
            next one. The bins may be unevenly spaced.

    Returns:
        (N,) losses.
    """
    lower = target.floor().clamp(0, pred.shape[1] - 2)
    upper_weight = (target - lower).clamp(0, 1)
    # A NaN is no index. It stays in the weight, and so the loss says what happened.
    lower = lower.nan_to_num().long()
    bins = torch.stack([lower, lower + 1], dim=1)
    weights = torch.stack([1 - upper_weight, upper_weight], dim=1)
    return -(F.log_softmax(pred, dim=-1).gather(1, bins) * weights).sum(1)


@MODELS.register_module()
class FineGrainedLocalizationLoss(nn.Module):
    """Module of :func:`fine_grained_localization_loss`.

    It is called as mmdet's ``DistributionFocalLoss``, but a target may lie on the last bin, too.
    ``weight`` is the IoU of the pair.

    Args:
        reduction: ``'none'``, ``'mean'`` or ``'sum'``.
        loss_weight: Factor of the loss.
    """

    def __init__(self, reduction: str = 'mean', loss_weight: float = 0.15) -> None:
        super().__init__()
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Loss of logits (N, bins) and targets (N,), weighted by ``weight`` (N,)."""
        loss = fine_grained_localization_loss(pred, target)
        reduction = reduction_override or self.reduction
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)
