"""Sets of predictions and their pairs with objects, which every loss term reads.

The predictions of L decoder layers are L *sets* of Q scores and boxes. The selected encoder queries
are one more set. So is the traditional head of D-FINE's first layer, whose boxes need no
distributions: RT-DETR has L + 1 sets, D-FINE L + 2. They are stacked, so that one operation does
the same for all sets. Each set is matched with the objects on its own (*own* pairs). D-FINE trains
boxes on the *union* of these matchings, the same pairs for all sets. Denoising queries are paired
with the objects that they were made from. For them own and union are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..layers.boxes import corners_around, paired_iou, to_corners
from ..layers.predictions import Predictions
from ..task_modules import Pairs, Targets


@dataclass
class PredictionSets:
    """S sets of predictions, stacked: those of L decoder layers first.

    Attributes:
        prefixes: What stands before the names of each set's loss terms, as in mmdet: ``d<i>.`` for
            layer i, nothing for the last layer, ``pre.`` for the traditional head, ``enc.`` for the
            encoder. For denoising queries ``dn.`` comes before these.
        scores: (S, B, Q, C) logits of C categories, for Q queries of B images.
        boxes: (S, B, Q, 4) as (cx, cy, w, h) in [0, 1].
        layers: All that the L layers predict.
    """

    prefixes: list[str]
    scores: Tensor
    boxes: Tensor
    layers: Predictions

    @classmethod
    def stack(
        cls,
        layers: Predictions,
        encoder: tuple[Tensor, Tensor] | None = None,
        prefix: str = '',
    ) -> 'PredictionSets':
        """All sets of some queries.

        Args:
            layers: Predictions of the decoder.
            encoder: Scores (B, Q, C) and boxes (B, Q, 4) of the selected encoder queries, if these
                are a set too.
            prefix: ``dn.`` for denoising queries.
        """
        prefixes = [*(f'd{i}.' for i in range(len(layers.scores) - 1)), '']
        scores, boxes = [layers.scores], [layers.boxes]
        if layers.initial_scores is not None:
            prefixes.append('pre.')
            scores.append(layers.initial_scores)
            boxes.append(layers.initial_boxes)
        if encoder is not None:
            prefixes.append('enc.')
            scores.append(encoder[0][None])
            boxes.append(encoder[1][None])
        prefixes = [f'{prefix}{name}' for name in prefixes]
        return cls(prefixes, torch.cat(scores), torch.cat(boxes), layers)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers.scores)


@dataclass
class MatchedSets:
    """Sets of predictions with their pairs; what several terms need is computed once.

    Attributes:
        sets: The predictions.
        pairs: Own pairs of each set, or pairs that hold for all sets.
        targets: The objects.
        normaliser: () divisor of a sum of losses; the mean over the ranks.
        counts: (2,) numbers of paired and of other queries of a set; the mean over the ranks.
        balance: Function that returns (2,) numbers of paired and of other matching queries, also
            for denoising queries. It waits for the matching. The square roots of these numbers
            weight the two parts of the distillation.
    """

    sets: PredictionSets
    pairs: Pairs
    targets: Targets
    normaliser: Tensor
    counts: Tensor
    balance: Callable[[], Tensor]

    @cached_property
    def boxes(self) -> Tensor:
        """Boxes of the P paired queries: (P, 4) for own pairs, (S, P, 4) for pairs of all sets."""
        return self.sets.boxes[self.pairs.place]

    @cached_property
    def corners(self) -> Tensor:
        """:attr:`boxes` as (x1, y1, x2, y2).

        D-FINE's distances can turn a box inside out. Such a box counts as empty. With negative
        sizes its GIoU could exceed 1, and training would seek such boxes.
        """
        centres, sizes = self.boxes.split(2, dim=-1)
        return corners_around(centres, sizes.clamp(min=0))

    @cached_property
    def target_boxes(self) -> Tensor:
        """Boxes of the paired objects, in the shape of :attr:`boxes`."""
        boxes = self.targets.boxes[self.pairs.images, self.pairs.objects]
        return boxes.expand(self.boxes.shape)

    @cached_property
    def target_corners(self) -> Tensor:
        """:attr:`target_boxes` as (x1, y1, x2, y2)."""
        return to_corners(self.target_boxes)

    @cached_property
    def target_labels(self) -> Tensor:
        """(P,) labels of the paired objects."""
        return self.targets.labels[self.pairs.images, self.pairs.objects]

    @cached_property
    def iou(self) -> Tensor:
        """IoU of the pairs in [0, 1], without gradient: (P,) or (S, P)."""
        return paired_iou(self.corners.detach(), self.target_corners)

    def sum_by_set(self, losses: Tensor) -> Tensor:
        """Sum (S,) of each set's losses over the normaliser; ``losses`` is flat, pair by pair."""
        num_sets = len(self.sets.scores)
        if self.pairs.sets is None:
            sums = losses.view(num_sets, -1).sum(1)
        else:
            by_pair = losses.view(len(self.pairs), -1).sum(1)
            sums = by_pair.new_zeros(num_sets).index_add(0, self.pairs.sets, by_pair)
        return sums / self.normaliser
