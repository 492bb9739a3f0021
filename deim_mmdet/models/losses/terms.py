"""The base class of loss terms, and the terms on scores and boxes."""

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ...utils.errors import UserError
from .matched_sets import ALL_SETS, MatchedSets


class LossTerm(nn.Module):
    """A term of :class:`SetCriterion`: one loss on some of the sets.

    A new term is a subclass with its own :meth:`forward`, registered in ``MODELS``, and one line of
    the config: ``criterion=dict(terms=dict(loss_mine=dict(type='MyTerm', loss=dict(...))))``.

    Args:
        loss: Config of the loss, which must take ``reduction_override='none'``.
        pairs: ``'own'`` for the matching of each set, ``'union'`` for the union set.

    Raises:
        ValueError: ``pairs`` is neither.
    """

    def __init__(self, loss: dict, pairs: str = 'own') -> None:
        super().__init__()
        if pairs not in ('own', 'union'):
            raise UserError(f"{type(self).__name__}: pairs must be 'own' or 'union', got {pairs!r}")
        self.pairs = pairs
        self.loss = MODELS.build(loss)

    def sets(self, matched: MatchedSets) -> slice:
        """Which sets have the term. Here: all."""
        return ALL_SETS

    def forward(self, matched: MatchedSets) -> Tensor:
        """Normalised losses (V,) of these sets, as :meth:`MatchedSets.prefixes` names them.

        :meth:`MatchedSets.sum_of_pairs` and :meth:`MatchedSets.sum_of_queries` return them.
        """
        raise NotImplementedError


@MODELS.register_module()
class ClassificationTerm(LossTerm):
    """Loss with (labels, quality) targets, such as MAL; the quality of a pair is its IoU."""

    def forward(self, matched: MatchedSets) -> Tensor:
        """Losses (V,) of all sets; see :class:`LossTerm`."""
        scores = matched.sets.scores
        shape, num_classes = scores.shape[:-1], scores.shape[-1]
        labels = scores.new_full(shape, num_classes, dtype=torch.int64)
        labels = matched.put(labels, matched.target_labels)
        quality = matched.put(scores.new_zeros(shape), matched.iou)
        loss = self.loss(
            scores.flatten(0, 2), (labels.flatten(), quality.flatten()), reduction_override='none'
        )
        return matched.sum_of_queries(loss.view(shape))


@MODELS.register_module()
class DistanceTerm(LossTerm):
    """Loss on paired boxes (cx, cy, w, h) in [0, 1], such as L1."""

    def forward(self, matched: MatchedSets) -> Tensor:
        """Losses (V,) of all sets; see :class:`LossTerm`."""
        if len(matched.pairs) == 0:
            return no_pairs(matched.sets.boxes)
        loss = self.loss(
            matched.boxes.flatten(0, -2),
            matched.target_boxes.flatten(0, -2),
            reduction_override='none',
        )
        return matched.sum_of_pairs(loss)


@MODELS.register_module()
class OverlapTerm(LossTerm):
    """Loss on paired boxes (x1, y1, x2, y2), such as GIoU."""

    def forward(self, matched: MatchedSets) -> Tensor:
        """Losses (V,) of all sets; see :class:`LossTerm`."""
        if len(matched.pairs) == 0:
            return no_pairs(matched.sets.boxes)
        loss = self.loss(
            matched.corners.flatten(0, -2),
            matched.target_corners.flatten(0, -2),
            reduction_override='none',
        )
        return matched.sum_of_pairs(loss)


def no_pairs(predictions: Tensor) -> Tensor:
    """(S,) zeros that depend on the predictions of S sets.

    The gradient exchange between ranks needs all parameters, with pairs or without.
    """
    return predictions.flatten(1).sum(1) * 0
