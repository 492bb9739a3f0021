"""Sets of predictions and their pairs with objects, which every loss term reads.

The predictions of L decoder layers are L *sets* of scores and boxes. The selected encoder queries
are one more set. So is the traditional head of D-FINE's first layer, whose boxes need no
distributions: RT-DETR has L + 1 sets, D-FINE L + 2. They are stacked, so that one operation does
the same for all sets. The queries have two *parts*, denoising and matching queries, whose losses
are normalised and named apart. The matching queries of each set are matched with the objects on its
own (*own* pairs). D-FINE trains boxes on the *union* of these matchings, the same pairs for all
sets. Denoising queries are paired with the objects that they were made from. The encoder has no
denoising queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.boxes import corners_around, paired_iou, to_corners
from ..layers.predictions import Predictions
from ..task_modules import Places, Targets

ALL_SETS = slice(None)


@dataclass
class PredictionSets:
    """S sets of predictions, stacked: those of L decoder layers first, that of the encoder last.

    Attributes:
        prefixes: What stands before the names of each set's loss terms, as in mmdet: ``d<i>.`` for
            layer i, nothing for the last layer, ``pre.`` for the traditional head, ``enc.`` for the
            encoder.
        scores: (S, B, Q, C) logits of C categories, for Q queries of B images, those of denoising
            first.
        boxes: (S, B, Q, 4) as (cx, cy, w, h) in [0, 1].
        layers: All that the L layers predict.
    """

    prefixes: list[str]
    scores: Tensor
    boxes: Tensor
    layers: Predictions

    @classmethod
    def stack(
        cls, layers: Predictions, encoder: tuple[Tensor, Tensor], num_denoising: int
    ) -> 'PredictionSets':
        """All sets.

        Args:
            layers: Predictions of the decoder for Q queries.
            encoder: Scores (B, Q', C) and boxes (B, Q', 4) of the selected encoder queries.
            num_denoising: The number Q - Q' of the denoising queries, which come first. In the
                encoder's set zeros stand for them.
        """
        prefixes = [*(f'd{i}.' for i in range(len(layers.scores) - 1)), '']
        scores, boxes = [layers.scores], [layers.boxes]
        if layers.initial_scores is not None:
            prefixes.append('pre.')
            scores.append(layers.initial_scores)
            boxes.append(layers.initial_boxes)
        for stacked, part in zip((scores, boxes), encoder, strict=True):
            if num_denoising:
                part = F.pad(part, (0, 0, num_denoising, 0))
            stacked.append(part[None])
        return cls([*prefixes, 'enc.'], torch.cat(scores), torch.cat(boxes), layers)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers.scores)


@dataclass
class Part:
    """The matching or the denoising queries.

    Attributes:
        prefixes: What stands before the names of the loss terms of its sets, which are the first of
            all sets.
        queries: Their places among all queries.
        num_pairs: Number of their pairs: in all sets together for own pairs, in each set for pairs
            that hold for all.
        normaliser: () divisor of a sum of losses; the mean over the ranks.
        counts: (2,) numbers of paired and of other queries of a set, in the union set; the mean
            over the ranks.
    """

    prefixes: list[str]
    queries: slice
    num_pairs: int
    normaliser: Tensor
    counts: Tensor


@dataclass
class MatchedSets:
    """Sets of predictions with their pairs; what several terms need is computed once.

    Attributes:
        sets: The predictions.
        pairs: Own pairs of each set, or pairs that hold for all sets; part after part.
        targets: The objects.
        parts: The matching queries and, where there are any, the denoising queries.
    """

    sets: PredictionSets
    pairs: Places
    targets: Targets
    parts: Sequence[Part]

    def prefixes(self, sets: slice) -> list[str]:
        """Prefixes of the V values of a term that some of the sets have.

        These are the matching queries' values of each of the sets, then those of the denoising
        queries, which the encoder's set lacks.
        """
        return [prefix for part in self.parts for prefix in part.prefixes[sets]]

    def of_queries(self, values: Tensor) -> Tensor:
        """What ``values`` (K, B, Q, ...) of K sets say of the paired queries.

        Returns:
            (K, P, ...) for P pairs of all sets; (P, ...) for own pairs, where K must be S.
        """
        if self.pairs.sets is None:
            return values.flatten(1, 2).index_select(1, self.pairs.queries)
        return values.flatten(0, 2).index_select(0, self.pairs.queries)

    def of_objects(self, values: Tensor) -> Tensor:
        """What ``values`` (B, m, ...) say of the paired objects, (P, ...)."""
        return values.flatten(0, 1).index_select(0, self.pairs.objects)

    def put(self, values: Tensor, of_pairs: Tensor) -> Tensor:
        """Put values of the pairs, as :meth:`of_queries` gives them or (P,), into (K, B, Q).

        Args:
            values: Where to put them, in place; contiguous.
            of_pairs: The values of the pairs.

        Returns:
            ``values``.
        """
        if self.pairs.sets is None:
            of_pairs = of_pairs.expand(len(values), -1)
            values.flatten(1).index_copy_(1, self.pairs.queries, of_pairs)
        else:
            values.view(-1).index_copy_(0, self.pairs.queries, of_pairs)
        return values

    @cached_property
    def boxes(self) -> Tensor:
        """Boxes of the P paired queries: (P, 4) for own pairs, (S, P, 4) for pairs of all sets."""
        return self.of_queries(self.sets.boxes)

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
        return self.of_objects(self.targets.boxes).expand(self.boxes.shape)

    @cached_property
    def target_corners(self) -> Tensor:
        """:attr:`target_boxes` as (x1, y1, x2, y2)."""
        return to_corners(self.target_boxes)

    @cached_property
    def target_labels(self) -> Tensor:
        """(P,) labels of the paired objects."""
        return self.of_objects(self.targets.labels)

    @cached_property
    def iou(self) -> Tensor:
        """IoU of the pairs in [0, 1], without gradient: (P,) or (S, P)."""
        return paired_iou(self.corners.detach(), self.target_corners)

    def sum_of_pairs(self, losses: Tensor, sets: slice = ALL_SETS) -> Tensor:
        """Sum of the losses of the pairs over the normaliser.

        Args:
            losses: n numbers for each pair, in any shape: P · n for P own pairs; for pairs of all
                sets, K · P · n of the K sets that ``sets`` names.
            sets: The sets that have the term.

        Returns:
            (V,) values of the term, as :meth:`prefixes` names them.
        """
        sizes = [part.num_pairs for part in self.parts]
        if self.pairs.sets is None:
            by_pair = losses.reshape(len(self.sets.prefixes[sets]), len(self.pairs), -1)
            sums = [of_part.sum((1, 2)) for of_part in by_pair.split(sizes, dim=1)]
        else:
            by_pair = losses.reshape(len(self.pairs), -1).sum(1)
            zeros = losses.new_zeros(len(self.sets.prefixes))
            parts = zip(by_pair.split(sizes), self.pairs.sets.split(sizes), strict=True)
            sums = [zeros.index_add(0, index, of_part)[sets] for of_part, index in parts]
        return self._normalised(sums, sets)

    def sum_of_queries(self, losses: Tensor, sets: slice = ALL_SETS) -> Tensor:
        """Sum of the losses of all queries over the normaliser.

        Args:
            losses: (K, B, Q), for each query of the K sets that ``sets`` names.
            sets: The sets that have the term.

        Returns:
            (V,) values of the term, as :meth:`prefixes` names them.
        """
        return self._normalised([losses[:, :, p.queries].sum((1, 2)) for p in self.parts], sets)

    def _normalised(self, sums: Sequence[Tensor], sets: slice) -> Tensor:
        """Values (V,) of a term, given the sums (K,) of each part for the K sets that have it."""
        return torch.cat(
            [
                part_sums[: len(part.prefixes[sets])] / part.normaliser
                for part_sums, part in zip(sums, self.parts, strict=True)
            ]
        )
