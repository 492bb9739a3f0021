"""All training losses of D-FINE and DEIM-D-FINE from stacked predictions, in one pass."""

import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from ..layers.dfine_decoder import DFINEPredictions
from ..layers.distribution import boxes_to_bins, weighting_function
from ..task_modules import Pairs, Targets, pairs_of_sets, union_set
from .set_criterion import (
    SetCriterion,
    aligned_iou,
    denoising_pairs,
    layer_prefixes,
    mean_over_ranks,
    named,
)


class DFINECriterion(SetCriterion):
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
        super().__init__(matcher, loss_cls, loss_bbox, loss_iou)
        self.loss_fgl = MODELS.build(loss_fgl)
        self.loss_ddf = MODELS.build(loss_ddf)

    def forward(
        self,
        matching: DFINEPredictions,
        encoder: tuple[Tensor, Tensor],
        denoising: DFINEPredictions | None,
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
            As :meth:`SetCriterion.forward`; also ``loss_fgl`` of every layer and ``loss_ddf`` of
            all but the last, and ``pre.`` for the traditional head.
        """
        layers = layer_prefixes(len(matching.scores))
        scores = torch.cat([matching.scores, matching.initial_scores[None], encoder[0][None]])
        boxes = torch.cat([matching.boxes, matching.initial_boxes[None], encoder[1][None]])
        matched = self.matcher.match(scores, boxes, targets)
        own = pairs_of_sets(matched, scores.device)
        union = union_set(matched, scores.shape[2], scores.device)
        num_noised = 0 if denoising is None else _num_queries(denoising) // num_groups
        counts = mean_over_ranks(
            scores,
            *(targets.total, num_noised - targets.total),
            *(len(union), _num_queries(matching) - len(union)),
        )
        num_objects, num_union = counts[[0, 2]].clamp(min=1)
        balance = counts[2:]

        terms = dict(
            loss_cls=self._classification(scores, boxes, own, targets) / num_objects,
            **{k: v / num_union for k, v in self._boxes(boxes, union, targets).items()},
        )
        local = self._distributions(matching, union, targets, num_union, bins, balance, balance)
        losses = {**named(terms, [*layers, 'pre.', 'enc.']), **_named_local(local, layers)}

        if denoising is not None:
            scores = torch.cat([denoising.scores, denoising.initial_scores[None]])
            boxes = torch.cat([denoising.boxes, denoising.initial_boxes[None]])
            pairs = denoising_pairs(targets, num_groups)
            count = num_objects * num_groups
            terms = self._terms(scores, boxes, pairs, targets, count)
            parts = counts[:2] * num_groups
            local = self._distributions(denoising, pairs, targets, count, bins, parts, balance)
            layers = [f'dn.{prefix}' for prefix in layers]
            losses.update(named(terms, [*layers, 'dn.pre.']))
            losses.update(_named_local(local, layers))
        return losses

    def _distributions(
        self,
        predictions: DFINEPredictions,
        pairs: Pairs,
        targets: Targets,
        normaliser: Tensor,
        bins: tuple[int, Tensor, Tensor],
        parts: Tensor,
        balance: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """FGL (L,) and DDF (L - 1,).

        ``parts`` (2,) are the numbers of matched and unmatched queries, averaged over the ranks,
        ``balance`` (2,) those that weight DDF's two means.
        """
        reg_max, up, reg_scale = bins
        table = weighting_function(reg_max, up, reg_scale)
        num_layers, batch, num_queries = predictions.scores.shape[:3]
        logits = predictions.distributions.unflatten(-1, (4, reg_max + 1))
        place = (slice(None), pairs.images, pairs.queries)
        target_boxes = targets.boxes[pairs.images, pairs.objects]
        iou = aligned_iou(predictions.boxes[place], target_boxes)

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
        confidence = predictions.scores[-1].detach().amax(-1).sigmoid()
        weight = confidence.repeat(num_layers, 1, 1)
        weight[place] = iou
        sides = matched[..., None].expand(-1, -1, 4).flatten()
        ddf = self.loss_ddf(
            logits[:-1].flatten(1, 3),
            logits[-1].flatten(0, 2),
            weight[:-1, ..., None].expand(-1, -1, -1, 4).flatten(1),
            avg_factor=parts * 4,
            matched=sides,
            balance=balance,
        )
        return fgl, ddf


def _named_local(terms: tuple[Tensor, Tensor], layers: list[str]) -> dict[str, Tensor]:
    """FGL of all layers and DDF of all but the last, by name."""
    fgl, ddf = terms
    return {**named(dict(loss_fgl=fgl), layers), **named(dict(loss_ddf=ddf), layers[:-1])}


def _num_queries(predictions: DFINEPredictions) -> int:
    """Queries of all images."""
    return predictions.references[..., 0].numel()
