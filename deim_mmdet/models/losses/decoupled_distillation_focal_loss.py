"""Decoupled distillation focal loss of D-FINE (DDF)."""

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class DecoupledDistillationFocalLoss(nn.Module):
    """Distils the last layer's distributions into earlier ones (D-FINE, arXiv 2410.13842, eq. 7).

    It is the KL divergence of distributions softened by a temperature T, times T². Matched and
    unmatched queries are averaged apart. The square roots of their numbers weight the two means, so
    that the many unmatched queries don't drown the others.

    Args:
        temperature: The temperature T; a higher one softens more.
        loss_weight: Factor of the loss.
    """

    def __init__(self, temperature: float = 5.0, loss_weight: float = 1.5) -> None:
        super().__init__()
        self.temperature = temperature
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        soft_label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        matched: Tensor | None = None,
        balance: Tensor | None = None,
    ) -> Tensor:
        """Loss for each place in the leading axes ``*``, e.g. for each decoder layer.

        Args:
            pred: (*, N, bins) logits of the students, N distributions each.
            soft_label: (N, bins) logits of the teacher; no gradient flows into them.
            weight: (*, N): IoU for matched predictions, the teacher's confidence for others.
            avg_factor: Without ``matched``, the divisor of the sum; default: N. With it, divisors
                (2,) or (K, 2) of the matched and the unmatched predictions; default: their numbers.
            matched: (N,) bool, which predictions are matched. Or (K, 2, N) bool, which are matched
                and which are unmatched in each of K parts. Default: all are matched, as mmdet's
                distillation heads hand over the positive ones only.
            balance: (2,) or (K, 2) numbers of matched and unmatched predictions, whose square roots
                weight the two means. Default: counted from ``matched``.

        Returns:
            (*) losses; (*, K) for K parts.
        """
        t = self.temperature
        teacher = F.log_softmax(soft_label.detach() / t, dim=-1)
        divergence = teacher - F.log_softmax(pred / t, dim=-1)
        # In place: the numbers are many, and a step needs most memory here.
        divergence = divergence.mul_(teacher.exp()).sum(-1) * t**2
        if weight is not None:
            divergence = divergence * weight.detach()
        if matched is None:
            return self.loss_weight * divergence.sum(-1) / (avg_factor or divergence.shape[-1])
        if matched.dim() == 1:
            matched = torch.stack([matched, ~matched])
        masks = matched.to(divergence.dtype)
        if avg_factor is None or balance is None:
            counts = masks.sum(-1)
            avg_factor = counts if avg_factor is None else avg_factor
            balance = counts if balance is None else balance
        for _ in masks.shape[:-1]:
            divergence = divergence.unsqueeze(-2)
        # A mean over nothing is 0, whatever the divisor.
        means = (divergence * masks).sum(-1) / avg_factor.clamp(min=1e-6)
        weights = balance.sqrt()
        return self.loss_weight * (means * weights).sum(-1) / weights.sum(-1).clamp(min=1e-6)
