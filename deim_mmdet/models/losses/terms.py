"""Loss terms on scores and boxes; the base class of all terms."""

import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor, nn

from .matched_sets import MatchedSets


class LossTerm(nn.Module):
    """A term of :class:`SetCriterion`: one loss on some of the sets.

    A new term is a subclass with its own :meth:`forward`, registered in ``MODELS``, and one line of
    the config: ``criterion=dict(terms=dict(loss_mine=dict(type='MyTerm', loss=dict(...))))``.

    Args:
        loss: Config of the loss, which mustn't reduce: the criterion asks it for the loss of each
            pair.
        pairs: ``'own'``, the matching of each set, or ``'union'``, that of all sets together.

    Raises:
        ValueError: There are no such pairs.
    """

    def __init__(self, loss: dict, pairs: str = 'own') -> None:
        super().__init__()
        if pairs not in ('own', 'union'):
            raise ValueError(
                f"{type(self).__name__}: pairs must be 'own' or 'union', got {pairs!r}"
            )
        self.pairs = pairs
        self.loss = MODELS.build(loss)

    def prefixes(self, matched: MatchedSets) -> list[str]:
        """Prefixes of the sets that the term is for, in the order of its values; here all."""
        return matched.sets.prefixes

    def forward(self, matched: MatchedSets) -> Tensor:
        """Loss of each of the sets that :meth:`prefixes` names, normalised."""
        raise NotImplementedError


@MODELS.register_module()
class ClassificationTerm(LossTerm):
    """Loss with (labels, quality) targets, such as MAL; the quality of a pair is its IoU."""

    def forward(self, matched: MatchedSets) -> Tensor:
        """(S,)."""
        scores = matched.sets.scores
        labels = torch.full_like(scores[..., 0], scores.shape[-1], dtype=torch.int64)
        quality = torch.zeros_like(scores[..., 0])
        labels[matched.pairs.place] = matched.target_labels
        quality[matched.pairs.place] = matched.iou
        loss = self.loss(
            scores.flatten(0, 2), (labels.flatten(), quality.flatten()), reduction_override='none'
        )
        return loss.view(len(scores), -1).sum(1) / matched.normaliser


@MODELS.register_module()
class DistanceTerm(LossTerm):
    """Loss on paired boxes (cx, cy, w, h), normalised by the input's size, such as L1."""

    def forward(self, matched: MatchedSets) -> Tensor:
        """(S,)."""
        if len(matched.pairs) == 0:
            return no_pairs(matched.sets.boxes)
        loss = self.loss(
            matched.boxes.flatten(0, -2),
            matched.target_boxes.flatten(0, -2),
            reduction_override='none',
        )
        return matched.sum_by_set(loss)


@MODELS.register_module()
class OverlapTerm(LossTerm):
    """Loss on paired boxes (x1, y1, x2, y2), such as GIoU."""

    def forward(self, matched: MatchedSets) -> Tensor:
        """(S,)."""
        if len(matched.pairs) == 0:
            return no_pairs(matched.sets.boxes)
        # D-FINE's distances can turn a box inside out. It counts as empty: with negative sizes its
        # GIoU may exceed 1, and training would seek such boxes.
        centres, sizes = matched.boxes.split(2, dim=-1)
        proper = torch.cat([centres, sizes.clamp(min=0)], dim=-1)
        loss = self.loss(
            bbox_cxcywh_to_xyxy(proper).flatten(0, -2),
            bbox_cxcywh_to_xyxy(matched.target_boxes).flatten(0, -2),
            reduction_override='none',
        )
        return matched.sum_by_set(loss)


def no_pairs(predictions: Tensor) -> Tensor:
    """(S,) zeros for S sets of predictions.

    All parameters take part in the gradient exchange between ranks, with pairs or without.
    """
    return predictions.flatten(1).sum(1) * 0
