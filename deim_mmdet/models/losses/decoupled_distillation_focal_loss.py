"""Decoupled distillation focal loss of D-FINE (DDF)."""

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class DecoupledDistillationFocalLoss(nn.Module):
    """Distils the last layer's distributions into earlier ones (D-FINE, arXiv 2410.13842, eq. 7).

    KL divergence of tempered distributions, times T². Matched and unmatched queries are averaged
    apart and combined in proportion to the square roots of their numbers, so that the many
    unmatched ones don't drown the others.

    Args:
        temperature: T.
        loss_weight: Factor of the whole.
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
        avg_factor: float | None = None,
        matched: Tensor | None = None,
        num_matched: Tensor | None = None,
        num_unmatched: Tensor | None = None,
    ) -> Tensor:
        """Loss of each of the leading dimensions, e.g. decoder layers.

        Args:
            pred: (*, N, bins) logits of the students.
            soft_label: (N, bins) logits of the teacher; no gradient flows into them.
            weight: (*, N): IoU for matched predictions, the teacher's confidence for others.
            avg_factor: Divisor of the sum where ``matched`` is ``None``; N by default.
            matched: (N,) bool. ``None`` takes all predictions for matched, as mmdet's
                distillation heads do, which hand over the positive ones only.
            num_matched: Number that balances the matched part; counted from ``matched`` if
                ``None``.
            num_unmatched: Likewise for the unmatched part.

        Returns:
            (*).
        """
        t = self.temperature
        teacher = F.log_softmax(soft_label.detach() / t, dim=-1)
        divergence = (teacher.exp() * (teacher - F.log_softmax(pred / t, dim=-1))).sum(-1) * t**2
        if weight is not None:
            divergence = divergence * weight.detach()
        if matched is None:
            return self.loss_weight * divergence.sum(-1) / (avg_factor or divergence.shape[-1])
        matched = matched.to(divergence.dtype)
        counts = matched.sum(), (1 - matched).sum()
        means = [
            (divergence * mask).sum(-1) / count.clamp(min=1)
            for mask, count in zip((matched, 1 - matched), counts, strict=True)
        ]
        balance = torch.stack(
            [
                counts[0] if num_matched is None else num_matched,
                counts[1] if num_unmatched is None else num_unmatched,
            ]
        ).sqrt()
        combined = means[0] * balance[0] + means[1] * balance[1]
        return self.loss_weight * combined / balance.sum().clamp(min=1e-6)
