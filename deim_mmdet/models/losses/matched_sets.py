"""Sets of predictions and their pairs with objects, which every loss term reads.

The predictions of L decoder layers are L *sets* of Q scores and boxes. The selected encoder queries
are one more set, and so is the traditional head of D-FINE's first layer: L + 1 sets of RT-DETR,
L + 2 of D-FINE. They are stacked, so that one operation does the same for all sets. Each set is
matched with the objects on its own (*own* pairs). D-FINE trains boxes on the *union* of these
matchings, the same pairs for all sets. Denoising queries are paired with the objects that they were
made from; to them own and union are the same.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import Tensor

from ..layers.predictions import Predictions
from ..task_modules import Pairs, Targets


@dataclass
class PredictionSets:
    """S sets of predictions, stacked: those of L decoder layers first.

    Attributes:
        prefixes: Of each set, what precedes the names of its loss terms, as mmdet has it: ``d<i>.``
            of earlier layers, nothing of the last, ``pre.`` of the traditional head, ``enc.`` of
            the encoder; ``dn.`` before these of denoising queries.
        scores: (S, B, Q, C) class logits.
        boxes: (S, B, Q, 4) as (cx, cy, w, h) in [0, 1].
        layers: What the L layers predict beside that.
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
        """L."""
        return len(self.layers.scores)


@dataclass
class MatchedSets:
    """Sets of predictions with their pairs; what several terms need is computed once.

    Attributes:
        sets: The predictions.
        pairs: Own pairs of each set, or pairs that hold for all sets.
        targets: The objects.
        normaliser: () what a sum of losses is divided by; the mean over the ranks.
        counts: (2,) number of paired and of other queries of a set; the mean over the ranks.
        balance: (2,) numbers whose square roots weight the distillation of paired and of other
            queries: the matching queries' counts, also for denoising queries.
    """

    sets: PredictionSets
    pairs: Pairs
    targets: Targets
    normaliser: Tensor
    counts: Tensor
    balance: Tensor

    @cached_property
    def boxes(self) -> Tensor:
        """Boxes of the paired queries: (P, 4) of own pairs, (S, P, 4) of pairs of all sets."""
        return self.sets.boxes[self.pairs.place]

    @cached_property
    def target_boxes(self) -> Tensor:
        """Boxes of the paired objects, in the shape of :attr:`boxes`."""
        boxes = self.targets.boxes[self.pairs.images, self.pairs.objects]
        return boxes.expand(self.boxes.shape)

    @cached_property
    def target_labels(self) -> Tensor:
        """(P,) labels of the paired objects."""
        return self.targets.labels[self.pairs.images, self.pairs.objects]

    @cached_property
    def iou(self) -> Tensor:
        """IoU of the pairs in [0, 1], without gradient: (P,) or (S, P)."""
        iou = bbox_overlaps(
            bbox_cxcywh_to_xyxy(self.boxes.detach()).flatten(0, -2),
            bbox_cxcywh_to_xyxy(self.target_boxes).flatten(0, -2),
            is_aligned=True,
            eps=1e-9,
        )
        return iou.view(self.boxes.shape[:-1])

    def sum_by_set(self, losses: Tensor) -> Tensor:
        """Losses of the pairs, flat and pair by pair, summed to (S,), over the normaliser."""
        num_sets = len(self.sets.scores)
        if self.pairs.sets is None:
            sums = losses.view(num_sets, -1).sum(1)
        else:
            by_pair = losses.view(len(self.pairs), -1).sum(1)
            sums = by_pair.new_zeros(num_sets).index_add(0, self.pairs.sets, by_pair)
        return sums / self.normaliser
