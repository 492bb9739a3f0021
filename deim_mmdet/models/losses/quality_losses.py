"""Quality-aware classification losses: MAL of DEIM and VFL of RT-DETR and D-FINE."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmdet.models.losses import QualityFocalLoss
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor

from ...utils.errors import UserError, UserTypeError


def matchability_aware_loss(
    pred: Tensor,
    labels: Tensor,
    quality: Tensor,
    gamma: float = 1.5,
    alpha: float | None = None,
) -> Tensor:
    """Matchability-aware loss (DEIM, arXiv 2412.04234, eq. 4).

    With p = σ(pred) and q the quality: -q^γ log p - (1 - q^γ) log(1 - p) for the matched class,
    -p^γ log(1 - p) for all others, so that a match of low quality still pulls a confident score
    down.

    Args:
        pred: (N, C) logits of N predictions for C categories.
        labels: (N,) int64 in [0, C]; C is the background.
        quality: (N,) IoU of the matched pair in [0, 1]; ignored where the label is background.
        gamma: Exponent γ of quality and probability.
        alpha: Factor of the part of the other classes; ``None`` is 1.

    Returns:
        (N,) losses, summed over classes.
    """
    matched = _power(quality.to(pred.dtype), gamma)
    return _matched_and_other_classes(
        pred, labels, matched, torch.ones_like(matched), gamma, 1.0 if alpha is None else alpha
    )


def varifocal_quality_loss(
    pred: Tensor, labels: Tensor, quality: Tensor, gamma: float = 2.0, alpha: float = 0.75
) -> Tensor:
    """Varifocal loss (arXiv 2008.13367) as RT-DETR and D-FINE train with it.

    With p = σ(pred) and q the quality: the binary cross-entropy BCE(p, q) weighted by q for the
    matched class, -α p^γ log(1 - p) for all others. Unlike in mmdet's ``VarifocalLoss``, a matched
    pair with quality 0 isn't treated as background.

    Args:
        pred: (N, C) logits of N predictions for C categories.
        labels: (N,) int64 in [0, C]; C is the background.
        quality: (N,) IoU of the matched pair in [0, 1].
        gamma: Exponent γ of the probability.
        alpha: Factor α of the part of the other classes.

    Returns:
        (N,) losses, summed over classes.
    """
    quality = quality.to(pred.dtype)
    return _matched_and_other_classes(pred, labels, quality, quality, gamma, alpha)


def _matched_and_other_classes(
    pred: Tensor, labels: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    """weight · BCE(p, target) for the matched class, -α p^γ log(1 - p) for the others, summed.

    Nearly all of the (N, C) scores belong to other classes. That part is computed for all scores,
    then replaced for the matched ones.
    """

    def of_others(logits: Tensor) -> Tensor:
        return F.softplus(logits) * (alpha * _power(logits.detach().sigmoid(), gamma))

    num_classes = pred.shape[1]
    at_label = pred.gather(1, labels.clamp(max=num_classes - 1)[:, None])[:, 0]
    of_matched = F.binary_cross_entropy_with_logits(at_label, target, weight, reduction='none')
    change = (of_matched - of_others(at_label)).masked_fill(labels == num_classes, 0)
    return of_others(pred).sum(-1) + change


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent``. For 1.5, the default, a square root is several times faster."""
    return base * base.sqrt() if exponent == 1.5 else base**exponent


class _QualityLoss(QualityFocalLoss):
    """A loss of (labels, quality) targets, called as mmdet calls its ``QualityFocalLoss``.

    mmdet's DETR heads hand labels and IoUs to any loss of that type. To use a subclass, it is
    enough to name it in the config. A subclass says by ``function`` what is computed.
    """

    function: Callable[..., Tensor]

    def __init__(
        self,
        gamma: float,
        alpha: float | None,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
        use_sigmoid: bool = True,
        activated: bool = False,
    ) -> None:
        if not use_sigmoid:
            raise UserError(
                f'{type(self).__name__} needs scores by sigmoid: set use_sigmoid=True, or leave '
                'it out'
            )
        super().__init__(
            use_sigmoid=True, reduction=reduction, loss_weight=loss_weight, activated=activated
        )
        self.gamma = gamma
        self.alpha = alpha

    def forward(
        self,
        pred: Tensor,
        target: tuple[Tensor, Tensor],
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted and reduced loss.

        Args:
            pred: (N, C) logits of N predictions for C categories; probabilities, if they are
                ``activated``.
            target: Labels (N,) in [0, C] with C the background, and qualities (N,) in [0, 1].
            weight: (N,) weight of each prediction.
            avg_factor: Divisor of the sum. Default: N.
            reduction_override: ``'none'``, ``'mean'`` or ``'sum'`` instead of ``reduction``.

        Returns:
            Scalar, or (N,) without reduction.

        Raises:
            TypeError: ``target`` is a tensor: the head knows no quality.
        """
        if isinstance(target, Tensor):
            raise UserTypeError(
                f'{type(self).__name__} needs targets (labels, IoU), but this head computes no '
                'IoU for its classification loss: leave the head its own'
            )
        if self.activated:
            # Half precision has no number so close to 1.
            single = torch.promote_types(pred.dtype, torch.float32)
            pred = pred.to(single).logit(eps=1e-6)
        loss = self.function(pred, *target, self.gamma, self.alpha)
        reduction = reduction_override or self.reduction
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)


@MODELS.register_module()
class MatchabilityAwareLoss(_QualityLoss):
    """Module of :func:`matchability_aware_loss` (MAL).

    Args:
        gamma: Exponent γ of quality and probability.
        alpha: Factor of the part of unmatched classes; ``None`` is 1.
        reduction: ``'none'``, ``'mean'`` or ``'sum'``.
        loss_weight: Factor of the loss.
        use_sigmoid: Must be True. For mmdet's anchor heads (GFL, RTMDet) it has to stand in the
            config, where they read it.
        activated: Whether predictions are probabilities instead of logits, as mmdet's ``TOODHead``
            has them. Default False.

    Raises:
        ValueError: ``use_sigmoid`` is False.
    """

    function = staticmethod(matchability_aware_loss)

    def __init__(self, gamma: float = 1.5, alpha: float | None = None, **kwargs) -> None:
        super().__init__(gamma, alpha, **kwargs)


@MODELS.register_module()
class VarifocalQualityLoss(_QualityLoss):
    """Module of :func:`varifocal_quality_loss` (VFL of the baselines).

    Args:
        gamma: Exponent γ of the probability.
        alpha: Factor α of the part of unmatched classes.
        reduction: ``'none'``, ``'mean'`` or ``'sum'``.
        loss_weight: Factor of the loss.
        use_sigmoid: Must be True. For mmdet's anchor heads (GFL, RTMDet) it has to stand in the
            config, where they read it.
        activated: Whether predictions are probabilities instead of logits, as mmdet's ``TOODHead``
            has them. Default False.

    Raises:
        ValueError: ``use_sigmoid`` is False.
    """

    function = staticmethod(varifocal_quality_loss)

    def __init__(self, gamma: float = 2.0, alpha: float = 0.75, **kwargs) -> None:
        super().__init__(gamma, alpha, **kwargs)
