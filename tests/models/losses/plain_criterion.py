"""The training losses written down step by step: one set of predictions after another.

This is the order of the papers and of the reference implementations, with matching per set, lists
per image and a dictionary of terms. It is what the package's stacked criteria are tested and
timed against, and shares no code with them.
"""

from collections import Counter
from dataclasses import replace

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def corners(boxes: Tensor) -> Tensor:
    x, y, w, h = boxes.unbind(-1)
    w, h = w.clamp(min=0), h.clamp(min=0)
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of corner boxes (..., 4), with broadcasting."""
    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0)
    inter = inter.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = hull.prod(-1)
    iou = inter / union
    return iou, iou - (hull - union) / hull


def of_queries(predictions, queries: slice):
    """The predictions for some of the queries, which the third axis numbers."""
    names = ('scores', 'boxes', 'distributions', 'references', 'initial_scores', 'initial_boxes')
    present = {name: value for name in names if (value := getattr(predictions, name)) is not None}
    return replace(predictions, **{name: value[:, :, queries] for name, value in present.items()})


class PlainCriterion:
    """Losses of RT-DETRv2 and, with ``bins``, of D-FINE.

    Args:
        loss: 'mal' or 'vfl'.
        bins: ``(W(n), reg_scale)``; None for RT-DETRv2.
        all_pairs: Form the overlaps of all pairs of matched boxes and take the diagonal, as the
            reference implementations do.
    """

    def __init__(
        self, loss: str, bins: tuple[Tensor, float] | None = None, all_pairs: bool = False
    ) -> None:
        self.loss = loss
        self.bins = bins
        self.all_pairs = all_pairs

    def paired_overlaps(self, boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """IoU and GIoU (N,) of paired (cx, cy, w, h) boxes (N, 4)."""
        boxes, others = corners(boxes), corners(others)
        if self.all_pairs:
            iou, giou = overlaps(boxes[:, None], others)
            return iou.diag(), giou.diag()
        return overlaps(boxes, others)

    def match(self, scores: Tensor, boxes: Tensor, targets: list[dict]) -> list[tuple]:
        """Indices of queries and objects of each image."""
        result = []
        with torch.no_grad():
            for image, target in enumerate(targets):
                p = scores[image].sigmoid()[:, target['labels']]
                focal = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
                focal = focal - 0.75 * p**2 * -(1 - p + 1e-8).log()
                distance = torch.cdist(boxes[image], target['boxes'], p=1)
                giou = overlaps(corners(boxes[image])[:, None], corners(target['boxes']))[1]
                cost = (2 * focal + 5 * distance - 2 * giou).cpu()
                pairs = linear_sum_assignment(cost)
                result.append(tuple(torch.as_tensor(side, dtype=torch.int64) for side in pairs))
        return result

    @staticmethod
    def union(matchings: list[list[tuple]]) -> list[tuple]:
        """Of each image, every query with its most frequent object over all matchings."""
        result = []
        for image in range(len(matchings[0])):
            pairs = Counter(
                pair
                for matching in matchings
                for pair in zip(*(side.tolist() for side in matching[image]), strict=True)
            )
            kept = {}
            for (query, target), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
                kept.setdefault(query, target)
            queries, objects = list(kept), list(kept.values())
            result.append((torch.tensor(queries).long(), torch.tensor(objects).long()))
        return result

    @staticmethod
    def gather(indices: list[tuple], targets: list[dict]) -> tuple[tuple, Tensor, Tensor]:
        """Index of the paired queries, and their labels and boxes."""
        images = torch.cat([torch.full_like(q, image) for image, (q, _) in enumerate(indices)])
        queries = torch.cat([q for q, _ in indices])
        labels = torch.cat([t['labels'][o] for t, (_, o) in zip(targets, indices, strict=True)])
        boxes = torch.cat([t['boxes'][o] for t, (_, o) in zip(targets, indices, strict=True)])
        return (images, queries), labels, boxes

    def classification(self, scores, boxes, indices, targets, count) -> Tensor:
        place, labels, target_boxes = self.gather(indices, targets)
        iou = self.paired_overlaps(boxes[place], target_boxes)[0].detach()
        one_hot = torch.zeros_like(scores)
        one_hot[(*place, labels)] = 1
        quality = torch.zeros_like(scores)
        p = scores.sigmoid().detach()
        if self.loss == 'mal':
            quality[(*place, labels)] = iou**1.5
            weight = p**1.5 * (1 - one_hot) + one_hot
        else:
            quality[(*place, labels)] = iou
            weight = 0.75 * p**2 * (1 - one_hot) + quality
        loss = F.binary_cross_entropy_with_logits(scores, quality, weight, reduction='none')
        return loss.mean(1).sum() * scores.shape[1] / count

    def boxes(self, boxes, indices, targets, count) -> tuple[Tensor, Tensor]:
        place, _, target_boxes = self.gather(indices, targets)
        distance = F.l1_loss(boxes[place], target_boxes, reduction='none').sum()
        giou = self.paired_overlaps(boxes[place], target_boxes)[1]
        return 5 * distance / count, 2 * (1 - giou).sum() / count

    def fgl(self, logits, boxes, references, indices, targets, count) -> Tensor:
        place, _, target_boxes = self.gather(indices, targets)
        bin_distances, scale = self.bins
        reference, target = references[place], corners(target_boxes)
        unit = reference[:, 2:] / scale
        low = (reference[:, :2] - target[:, :2]) / unit - scale / 2
        high = (target[:, 2:] - reference[:, :2]) / unit - scale / 2
        distance = torch.cat([low, high], 1).flatten()
        distance = distance.clamp(bin_distances[0], bin_distances[-1])
        left = (distance[:, None] >= bin_distances).sum(1).clamp(1, len(bin_distances) - 1) - 1
        below, above = bin_distances[left], bin_distances[left + 1]
        right_weight = (distance - below) / (above - below)
        logits = logits[place].reshape(-1, len(bin_distances))
        loss = F.cross_entropy(logits, left, reduction='none') * (1 - right_weight)
        loss = loss + F.cross_entropy(logits, left + 1, reduction='none') * right_weight
        iou = self.paired_overlaps(boxes[place], target_boxes)[0].detach()
        return 0.15 * (loss * iou.repeat_interleave(4)).sum() / count

    def ddf(self, logits, boxes, last_logits, last_scores, indices, targets, balance) -> Tensor:
        place, _, target_boxes = self.gather(indices, targets)
        bins = len(self.bins[0])
        iou = self.paired_overlaps(boxes[place], target_boxes)[0].detach()
        weight = last_scores.detach().sigmoid().max(-1).values
        weight[place] = iou.to(weight.dtype)
        matched = torch.zeros_like(weight, dtype=torch.bool)
        matched[place] = True
        matched, weight = (x[..., None].expand(-1, -1, 4).reshape(-1) for x in (matched, weight))
        student = F.log_softmax(logits.reshape(-1, bins) / 5, dim=1)
        teacher = F.softmax(last_logits.detach().reshape(-1, bins) / 5, dim=1)
        loss = weight * 25 * F.kl_div(student, teacher, reduction='none').sum(-1)
        means = [loss[mask].mean() if mask.any() else 0 for mask in (matched, ~matched)]
        if balance is None:
            balance = (matched.sum() ** 0.5, (~matched).sum() ** 0.5)
        total = means[0] * balance[0] + means[1] * balance[1]
        return 1.5 * total / (balance[0] + balance[1]), balance

    def layer(self, prefix, prediction, cls_indices, box_indices, targets, counts) -> dict:
        """Terms of one set of predictions."""
        scores, boxes = prediction
        bbox, iou = self.boxes(boxes, box_indices, targets, counts[1])
        cls = self.classification(scores, boxes, cls_indices, targets, counts[0])
        return {f'{prefix}loss_cls': cls, f'{prefix}loss_bbox': bbox, f'{prefix}loss_iou': iou}

    def __call__(
        self, predictions, encoder, targets, num_denoising=0, num_groups=0
    ) -> dict[str, Tensor]:
        """As the package's criteria, but the objects are a list of dicts."""
        matching = of_queries(predictions, slice(num_denoising, None))
        largest = max(len(t['labels']) for t in targets)
        denoising = of_queries(predictions, slice(num_groups * 2 * largest))
        num_layers = len(matching.scores)
        prefixes = [*(f'd{i}.' for i in range(num_layers - 1)), '']
        sets = dict(zip(prefixes, zip(matching.scores, matching.boxes, strict=True), strict=True))
        if self.bins is not None:
            sets['pre.'] = matching.initial_scores[0], matching.initial_boxes[0]
        sets['enc.'] = encoder
        indices = {prefix: self.match(*prediction, targets) for prefix, prediction in sets.items()}
        objects = max(sum(len(t['labels']) for t in targets), 1)
        shared, counts = None, (objects, objects)
        if self.bins is not None:
            shared = self.union(list(indices.values()))
            counts = objects, max(sum(len(q) for q, _ in shared), 1)
        losses = {}
        for prefix, prediction in sets.items():
            own = indices[prefix]
            losses.update(self.layer(prefix, prediction, own, shared or own, targets, counts))
        balance = None
        if self.bins is not None:
            terms, balance = self.local(matching, prefixes, shared, targets, counts[1], None)
            losses.update(terms)
        if not num_groups * largest:
            return losses

        fixed = []
        for target in targets:
            numbers = torch.arange(len(target['labels']))
            queries = [numbers + group * 2 * largest for group in range(num_groups)]
            fixed.append((torch.cat(queries), numbers.repeat(num_groups)))
        count = objects * num_groups
        sets = dict(zip(prefixes, zip(denoising.scores, denoising.boxes, strict=True), strict=True))
        if self.bins is not None:
            sets['pre.'] = denoising.initial_scores[0], denoising.initial_boxes[0]
        for prefix, prediction in sets.items():
            name = f'dn.{prefix}'
            losses.update(self.layer(name, prediction, fixed, fixed, targets, (count, count)))
        if self.bins is not None:
            terms, _ = self.local(denoising, prefixes, fixed, targets, count, balance)
            losses.update({f'dn.{name}': term for name, term in terms.items()})
        return losses

    def local(self, predictions, prefixes, indices, targets, count, balance):
        """FGL and DDF of every layer."""
        losses, last = {}, len(prefixes) - 1
        for i, prefix in enumerate(prefixes):
            logits, boxes = predictions.distributions[i], predictions.boxes[i]
            losses[f'{prefix}loss_fgl'] = self.fgl(
                logits, boxes, predictions.references[0], indices, targets, count
            )
            if i < last:
                losses[f'{prefix}loss_ddf'], balance = self.ddf(
                    logits, boxes, predictions.distributions[last], predictions.scores[last],
                    indices, targets, balance,
                )  # fmt: skip
        return losses, balance
