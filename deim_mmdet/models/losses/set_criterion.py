"""Training losses of DETRs with query selection from stacked predictions, in one pass."""

import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from ..layers.decoder import DecoderPredictions
from ..task_modules import Pairs, Targets, pairs_of_sets


class SetCriterion(nn.Module):
    """Matching and loss terms of decoder layers, encoder and denoising, as RT-DETR has them.

    The predictions of all L decoder layers and of the selected encoder queries are L + 1 *sets* of
    Q boxes and scores each, stacked. Every set is matched on its own; the denoising queries are
    trained on the objects that they were made from.

    Args:
        matcher: Config of the matcher.
        loss_cls: Config of a loss with (labels, quality) targets, such as MAL.
        loss_bbox: Config of the loss on normalised (cx, cy, w, h).
        loss_iou: Config of the loss on (x1, y1, x2, y2).
    """

    def __init__(self, matcher: dict, loss_cls: dict, loss_bbox: dict, loss_iou: dict) -> None:
        super().__init__()
        self.matcher = TASK_UTILS.build(matcher)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.loss_iou = MODELS.build(loss_iou)

    def forward(
        self,
        matching: DecoderPredictions,
        encoder: tuple[Tensor, Tensor],
        denoising: DecoderPredictions | None,
        num_groups: int,
        targets: Targets,
    ) -> dict[str, Tensor]:
        """Loss terms, times their weights.

        Args:
            matching: Predictions of L layers for the Q matching queries.
            encoder: Scores (B, Q, C) and boxes (B, Q, 4) of the selected encoder queries.
            denoising: Predictions for the denoising queries; ``None`` if no image holds an
                object.
            num_groups: Denoising groups.
            targets: The objects.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_iou`` of the last layer; the prefixes ``d<i>.`` tell
            earlier layers, ``enc.`` the encoder and ``dn.`` the denoising queries.
        """
        layers = layer_prefixes(len(matching.scores))
        scores = torch.cat([matching.scores, encoder[0][None]])
        boxes = torch.cat([matching.boxes, encoder[1][None]])
        pairs = pairs_of_sets(self.matcher.match(scores, boxes, targets), scores.device)
        num_objects = mean_over_ranks(scores, targets.total)[0].clamp(min=1)
        terms = self._terms(scores, boxes, pairs, targets, num_objects)
        losses = named(terms, [*layers, 'enc.'])
        if denoising is not None:
            pairs = denoising_pairs(targets, num_groups)
            count = num_objects * num_groups
            terms = self._terms(denoising.scores, denoising.boxes, pairs, targets, count)
            losses.update(named(terms, [f'dn.{prefix}' for prefix in layers]))
        return losses

    def _terms(
        self, scores: Tensor, boxes: Tensor, pairs: Pairs, targets: Targets, normaliser: Tensor
    ) -> dict[str, Tensor]:
        """Terms (S,) of S sets with scores (S, B, Q, C) and boxes (S, B, Q, 4) on ``pairs``."""
        terms = dict(
            loss_cls=self._classification(scores, boxes, pairs, targets),
            **self._boxes(boxes, pairs, targets),
        )
        return {name: term / normaliser for name, term in terms.items()}

    def _classification(
        self, scores: Tensor, boxes: Tensor, pairs: Pairs, targets: Targets
    ) -> Tensor:
        """Sum of the classification loss of each of S sets, (S,)."""
        num_sets, _, _, num_classes = scores.shape
        labels = torch.full_like(scores[..., 0], num_classes, dtype=torch.int64)
        quality = torch.zeros_like(scores[..., 0])
        place = pairs.queries_in_sets
        iou = aligned_iou(boxes[place], targets.boxes[pairs.images, pairs.objects])
        labels[place] = targets.labels[pairs.images, pairs.objects]
        quality[place] = iou
        loss = self.loss_cls(
            scores.flatten(0, 2), (labels.flatten(), quality.flatten()), reduction_override='none'
        )
        return loss.view(num_sets, -1).sum(1)

    def _boxes(self, boxes: Tensor, pairs: Pairs, targets: Targets) -> dict[str, Tensor]:
        """Sum of the box losses of each of S sets, (S,) each; pairs of all or of each set."""
        if len(pairs) == 0:
            # The parameters must take part in the gradient exchange between ranks all the same.
            zero = boxes.sum((1, 2, 3)) * 0
            return dict(loss_bbox=zero, loss_iou=zero)
        paired = boxes[pairs.queries_in_sets]
        target = targets.boxes[pairs.images, pairs.objects].expand(paired.shape)
        distance = self.loss_bbox(
            paired.flatten(0, -2), target.flatten(0, -2), reduction_override='none'
        )
        # D-FINE's distances can turn a box inside out. It counts as empty: with negative sizes its
        # GIoU may exceed 1, and training would seek such boxes.
        proper = torch.cat([paired[..., :2], paired[..., 2:].clamp(min=0)], dim=-1)
        overlap = self.loss_iou(
            bbox_cxcywh_to_xyxy(proper).flatten(0, -2),
            bbox_cxcywh_to_xyxy(target).flatten(0, -2),
            reduction_override='none',
        )
        return dict(
            loss_bbox=distance.view(len(boxes), -1).sum(1),
            loss_iou=overlap.view(len(boxes), -1).sum(1),
        )


def mean_over_ranks(like: Tensor, *counts: int) -> Tensor:
    """Mean of each count over the ranks, on the device of ``like``.

    DDP averages the gradients of the ranks. Sums divided by the mean count therefore add up to what
    one process computes of the joint batch. Each rank must ask for as many counts as the others.
    """
    return reduce_mean(like.new_tensor(counts, dtype=torch.float))


def aligned_iou(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """IoU of aligned (cx, cy, w, h) boxes (..., 4), without gradient, in [0, 1]."""
    iou = bbox_overlaps(
        bbox_cxcywh_to_xyxy(boxes.detach()).flatten(0, -2),
        bbox_cxcywh_to_xyxy(target_boxes.expand(boxes.shape)).flatten(0, -2),
        is_aligned=True,
        eps=1e-9,
    )
    return iou.view(boxes.shape[:-1])


def layer_prefixes(num_layers: int) -> list[str]:
    """Prefixes of decoder layers as mmdet names them: none for the last."""
    return [*(f'd{i}.' for i in range(num_layers - 1)), '']


def named(terms: dict[str, Tensor], prefixes: list[str]) -> dict[str, Tensor]:
    """``{prefix + term: scalar}`` of terms that have a value for each of the prefixes.

    Raises:
        ValueError: A term has another number of values, of which some would be lost.
    """
    for term, values in terms.items():
        if values.shape != (len(prefixes),):
            raise ValueError(
                f'{term} needs {len(prefixes)} values, one for each of {prefixes}, got the shape '
                f'{tuple(values.shape)}: its loss must keep the sets of predictions apart'
            )
    return {
        prefix + term: value
        for term, values in terms.items()
        for prefix, value in zip(prefixes, values, strict=True)
    }


def denoising_pairs(targets: Targets, num_groups: int) -> Pairs:
    """The positive query of each object in each denoising group."""
    images, objects = targets.real_pairs()
    group_start = torch.arange(num_groups, device=images.device)[:, None] * 2 * targets.max_count
    return Pairs(
        images=images.repeat(num_groups),
        queries=(group_start + objects).flatten(),
        objects=objects.repeat(num_groups),
    )
