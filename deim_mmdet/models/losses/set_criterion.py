"""All training losses of D-FINE and DEIM from stacked predictions, in one pass."""

import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from ..layers.dfine_decoder import DecoderPredictions
from ..layers.distribution import boxes_to_bins, weighting_function
from ..task_modules import Pairs, Targets, pairs_of_sets, union_set


def _aligned_iou(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """IoU of aligned (cx, cy, w, h) boxes (..., 4), without gradient, in [0, 1]."""
    iou = bbox_overlaps(
        bbox_cxcywh_to_xyxy(boxes.detach()).flatten(0, -2),
        bbox_cxcywh_to_xyxy(target_boxes.expand(boxes.shape)).flatten(0, -2),
        is_aligned=True,
        eps=1e-9,
    )
    return iou.view(boxes.shape[:-1])


class DFINECriterion(nn.Module):
    """Matching and loss terms of decoder layers, initial head, encoder and denoising.

    The predictions of all L decoder layers, of the first layer's traditional head and of the
    selected encoder queries are L + 2 *sets* of Q boxes and scores each, stacked. Every set is
    matched on its own for the classification. Boxes and distributions of the matching queries are
    trained on the union set, the denoising queries on the objects that they were made from.

    Args:
        matcher: Config of the matcher.
        loss_cls: Config of a loss with (labels, quality) targets, such as MAL.
        loss_bbox: Config of the loss on normalised (cx, cy, w, h).
        loss_iou: Config of the loss on (x1, y1, x2, y2).
        loss_fgl: Config of the loss on distributions and target positions.
        loss_ddf: Config of the distillation from the last layer.
    """

    def __init__(
        self,
        matcher: dict,
        loss_cls: dict,
        loss_bbox: dict,
        loss_iou: dict,
        loss_fgl: dict,
        loss_ddf: dict,
    ) -> None:
        super().__init__()
        self.matcher = TASK_UTILS.build(matcher)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.loss_iou = MODELS.build(loss_iou)
        self.loss_fgl = MODELS.build(loss_fgl)
        self.loss_ddf = MODELS.build(loss_ddf)

    def forward(
        self,
        matching: DecoderPredictions,
        encoder: tuple[Tensor, Tensor],
        denoising: DecoderPredictions | None,
        num_groups: int,
        targets: Targets,
        bins: tuple[int, Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """Loss terms, times their weights.

        Args:
            matching: Predictions of L layers for the Q matching queries.
            encoder: Scores (B, Q, C) and boxes (B, Q, 4) of the selected encoder queries.
            denoising: Predictions for the denoising queries; ``None`` if no image holds an
                object.
            num_groups: Denoising groups.
            targets: The objects.
            bins: ``(reg_max, up, reg_scale)`` of the distributions.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_iou``, ``loss_fgl`` of the last layer; the prefixes
            ``d<i>.`` tell earlier layers (with ``loss_ddf``), ``pre.`` the traditional head,
            ``enc.`` the encoder and ``dn.`` the denoising queries.
        """
        num_layers = len(matching.scores)
        scores = torch.cat([matching.scores, matching.initial_scores[None], encoder[0][None]])
        boxes = torch.cat([matching.boxes, matching.initial_boxes[None], encoder[1][None]])
        device = scores.device
        matched = self.matcher.match(scores, boxes, targets)
        own = pairs_of_sets(matched, device)
        union = union_set(matched, scores.shape[2], device)
        normalisers = torch.tensor([targets.total, len(union)], dtype=torch.float, device=device)
        num_objects, num_union = reduce_mean(normalisers).clamp(min=1)

        terms = dict(
            loss_cls=self._classification(scores, boxes, own, targets) / num_objects,
            **self._boxes(boxes, union, targets, num_union),
        )
        local, balance = self._distributions(matching, union, targets, num_union, bins)
        names = [*_layer_names(num_layers), 'pre.', 'enc.']
        losses = _named({**terms, **local}, names)

        if denoising is not None:
            scores = torch.cat([denoising.scores, denoising.initial_scores[None]])
            boxes = torch.cat([denoising.boxes, denoising.initial_boxes[None]])
            pairs = _denoising_pairs(targets, num_groups)
            count = num_objects * num_groups
            terms = dict(
                loss_cls=self._classification(scores, boxes, pairs, targets) / count,
                **self._boxes(boxes, pairs, targets, count),
            )
            local, _ = self._distributions(denoising, pairs, targets, count, bins, balance)
            names = [*_layer_names(num_layers), 'pre.']
            losses.update(
                {f'dn.{name}': loss for name, loss in _named({**terms, **local}, names).items()}
            )
        return losses

    def _classification(
        self, scores: Tensor, boxes: Tensor, pairs: Pairs, targets: Targets
    ) -> Tensor:
        """Sum of the classification loss of each of S sets, (S,)."""
        num_sets, _, _, num_classes = scores.shape
        labels = torch.full_like(scores[..., 0], num_classes, dtype=torch.int64)
        quality = torch.zeros_like(scores[..., 0])
        sets = slice(None) if pairs.sets is None else pairs.sets
        place = (sets, pairs.images, pairs.queries)
        iou = _aligned_iou(boxes[place], targets.boxes[pairs.images, pairs.objects])
        labels[place] = targets.labels[pairs.images, pairs.objects]
        quality[place] = iou
        loss = self.loss_cls(
            scores.flatten(0, 2), (labels.flatten(), quality.flatten()), reduction_override='none'
        )
        return loss.view(num_sets, -1).sum(1)

    def _boxes(
        self, boxes: Tensor, pairs: Pairs, targets: Targets, normaliser: Tensor
    ) -> dict[str, Tensor]:
        """Box losses of each of S sets on common pairs, (S,) each."""
        if len(pairs) == 0:
            # The parameters must take part in the gradient exchange between ranks all the same.
            zero = boxes.sum((1, 2, 3)) * 0
            return dict(loss_bbox=zero, loss_iou=zero)
        paired = boxes[:, pairs.images, pairs.queries]
        target = targets.boxes[pairs.images, pairs.objects].expand(paired.shape)
        distance = self.loss_bbox(
            paired.flatten(0, 1), target.flatten(0, 1), reduction_override='none'
        )
        overlap = self.loss_iou(
            bbox_cxcywh_to_xyxy(paired).flatten(0, 1),
            bbox_cxcywh_to_xyxy(target).flatten(0, 1),
            reduction_override='none',
        )
        return dict(
            loss_bbox=distance.view(len(boxes), -1).sum(1) / normaliser,
            loss_iou=overlap.view(len(boxes), -1).sum(1) / normaliser,
        )

    def _distributions(
        self,
        predictions: DecoderPredictions,
        pairs: Pairs,
        targets: Targets,
        normaliser: Tensor,
        bins: tuple[int, Tensor, Tensor],
        balance: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """FGL (L,) and DDF (L - 1,), and the numbers that balance DDF's two parts."""
        reg_max, up, reg_scale = bins
        table = weighting_function(reg_max, up, reg_scale)
        num_layers, batch, num_queries = predictions.scores.shape[:3]
        logits = predictions.distributions.unflatten(-1, (4, reg_max + 1))
        place = (slice(None), pairs.images, pairs.queries)
        target_boxes = targets.boxes[pairs.images, pairs.objects]
        iou = _aligned_iou(predictions.boxes[place], target_boxes)

        if len(pairs) == 0:
            fgl = logits.sum((1, 2, 3, 4)) * 0
        else:
            lower, upper_weight = boxes_to_bins(
                predictions.references[pairs.images, pairs.queries],
                bbox_cxcywh_to_xyxy(target_boxes),
                table,
                reg_scale,
            )
            position = (lower + upper_weight).expand(num_layers, -1, -1)
            loss = self.loss_fgl(
                logits[place].flatten(0, 2),
                position.flatten(),
                weight=iou[..., None].expand(-1, -1, 4).flatten(),
                reduction_override='none',
            )
            fgl = loss.view(num_layers, -1).sum(1) / normaliser

        matched = torch.zeros(batch, num_queries, dtype=torch.bool, device=logits.device)
        matched[pairs.images, pairs.queries] = True
        confidence = predictions.scores[-1].detach().sigmoid().amax(-1)
        weight = confidence.repeat(num_layers, 1, 1)
        weight[place] = iou
        sides = matched[..., None].expand(-1, -1, 4).flatten()
        if balance is None:
            balance = sides.sum(), (~sides).sum()
        ddf = self.loss_ddf(
            logits[:-1].flatten(1, 3),
            logits[-1].flatten(0, 2),
            weight[:-1, ..., None].expand(-1, -1, -1, 4).flatten(1),
            matched=sides,
            num_matched=balance[0],
            num_unmatched=balance[1],
        )
        return dict(loss_fgl=fgl, loss_ddf=ddf), balance


def _layer_names(num_layers: int) -> list[str]:
    """Prefixes of decoder layers as mmdet names them: none for the last."""
    return [*(f'd{i}.' for i in range(num_layers - 1)), '']


def _named(terms: dict[str, Tensor], prefixes: list[str]) -> dict[str, Tensor]:
    """``{prefix + term: scalar}``; a term with fewer values belongs to the first prefixes."""
    return {
        prefix + term: value
        for term, values in terms.items()
        for prefix, value in zip(prefixes, values, strict=False)
    }


def _denoising_pairs(targets: Targets, num_groups: int) -> Pairs:
    """The positive query of each object in each denoising group."""
    images, objects = targets.real_pairs()
    group_start = torch.arange(num_groups, device=images.device)[:, None] * 2 * targets.max_count
    return Pairs(
        images=images.repeat(num_groups),
        queries=(group_start + objects).flatten(),
        objects=objects.repeat(num_groups),
    )
