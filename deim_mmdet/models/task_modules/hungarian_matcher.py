"""One-to-one matching of queries and objects (DETR, arXiv 2005.12872) of all sets at once."""

from dataclasses import dataclass

import numpy as np
import torch
from mmdet.registry import TASK_UTILS
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .targets import Targets


@dataclass
class Pairs:
    """Pairs of queries and objects; all (P,) int64.

    Attributes:
        images: Index of the image in the batch.
        queries: Index of the query.
        objects: Index of the object in its image.
        sets: Index of the prediction set; ``None`` where the pairs hold for all sets.
    """

    images: Tensor
    queries: Tensor
    objects: Tensor
    sets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def queries_in_sets(self) -> tuple[Tensor | slice, Tensor, Tensor]:
        """Index of the paired queries in a stack (S, B, Q, ...) of sets."""
        return slice(None) if self.sets is None else self.sets, self.images, self.queries


@TASK_UTILS.register_module()
class HungarianMatcher:
    """Matching by a focal classification cost, the L1 distance and the GIoU of the boxes.

    mmdet's ``HungarianAssigner`` takes one image and one decoder layer; here the costs of all
    layers and images are computed together and reach the host in one transfer.

    Args:
        cost_class: Weight of the focal cost.
        cost_bbox: Weight of the L1 distance of normalised boxes.
        cost_iou: Weight of -GIoU.
        alpha: α of the focal cost.
        gamma: γ of the focal cost.
    """

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_iou: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_iou = cost_iou
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def costs(self, scores: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """Cost of each query and object (S, B, Q, m) from (S, B, Q, C) logits and (S, B, Q, 4)."""
        scores, boxes = scores.float(), boxes.float()
        labels = targets.labels[None, :, None].expand(len(scores), -1, scores.shape[2], -1)
        if labels.shape[-1] < scores.shape[-1]:
            cost = self._focal_costs(scores.gather(-1, labels))
        else:
            cost = self._focal_costs(scores).gather(-1, labels)
        target_boxes = targets.boxes.float()
        cost += torch.cdist(boxes, target_boxes.expand(len(scores), -1, -1, -1), p=1).mul_(
            self.cost_bbox
        )
        cost -= _pairwise_giou(boxes[..., None, :], target_boxes[:, None]).mul_(self.cost_iou)
        return cost.nan_to_num_(nan=1.0)

    def _focal_costs(self, scores: Tensor) -> Tensor:
        """Weighted focal cost of predicting a class instead of background."""
        probability = scores.sigmoid()
        rest = 1 - probability
        positive = (probability + 1e-8).log_().mul_(rest**self.gamma).mul_(-self.alpha)
        negative = rest.add_(1e-8).log_().mul_(probability**self.gamma).mul_(self.alpha - 1)
        return positive.sub_(negative).mul_(self.cost_class)

    def match(self, scores: Tensor, boxes: Tensor, targets: Targets) -> np.ndarray:
        """Query matched to each object in each set: (S, B, m) int64, -1 for padding.

        Where an image has more objects than queries, the objects left over are -1 too.
        """
        matched = np.full((len(scores), len(targets.counts), targets.max_count), -1)
        if targets.total == 0:
            return matched
        # A GPU takes all images at once; a CPU one after another, so that the costs stay in cache.
        step = 1 if scores.device.type == 'cpu' else len(targets.counts)
        for start in range(0, len(targets.counts), step):
            images = slice(start, start + step)
            part = targets.of_images(images)
            costs = self.costs(scores[:, images], boxes[:, images], part).cpu().numpy()
            for index, count in enumerate(part.counts):
                for set_index, set_costs in enumerate(costs[:, index, :, :count]):
                    queries, objects = linear_sum_assignment(set_costs)
                    matched[set_index, start + index, objects] = queries
        return matched


def _pairwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """GIoU of (cx, cy, w, h) boxes (..., 4), broadcast against each other, in [-1, 1].

    A negative size counts as 0, see :meth:`SetCriterion._boxes`.
    mmdet's ``bbox_overlaps`` computes the same on stacked corners, with thrice the memory traffic.
    """
    sizes = boxes[..., 2:].clamp(min=0), others[..., 2:]
    low, high = (
        [box[..., :2] + sign * size / 2 for box, size in zip((boxes, others), sizes, strict=True)]
        for sign in (-1, 1)
    )
    intersection, hull = 1.0, 1.0
    for axis in range(2):
        overlap = torch.minimum(high[0][..., axis], high[1][..., axis])
        overlap -= torch.maximum(low[0][..., axis], low[1][..., axis])
        # A negative overlap is the gap between the boxes.
        hull = hull * ((sizes[0][..., axis] + sizes[1][..., axis]) - overlap)
        intersection = overlap.clamp_(min=0) * intersection
    union = (sizes[0].prod(-1) + sizes[1].prod(-1)).sub(intersection).clamp_(min=1e-9)
    return intersection.div_(union).sub_(1).add_(union.div_(hull.clamp_(min=1e-9)))


def pairs_of_sets(matched: np.ndarray, device: torch.device) -> Pairs:
    """The pairs of every set, from :meth:`HungarianMatcher.match`; set after set, equally many."""
    sets, images, objects = (matched >= 0).nonzero()
    indices = np.stack([sets, images, objects, matched[sets, images, objects]])
    sets, images, objects, queries = torch.from_numpy(indices).to(device)
    return Pairs(images, queries, objects, sets)


def union_set(matched: np.ndarray, num_queries: int, device: torch.device) -> Pairs:
    """Union of the matchings of all sets, a query keeping its most frequent object.

    D-FINE (arXiv 2410.13842), GO-LSD. Of equally frequent objects the lowest index is kept.

    Args:
        matched: (S, B, m) of :meth:`HungarianMatcher.match`.
        num_queries: Q.
        device: Device of the result.
    """
    sets, images, objects = (matched >= 0).nonzero()
    counts = np.zeros((matched.shape[1], num_queries, matched.shape[2]), dtype=np.int32)
    np.add.at(counts, (images, matched[sets, images, objects], objects), 1)
    if matched.shape[2] == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return Pairs(empty, empty, empty)
    union_images, union_queries = counts.any(-1).nonzero()
    union_objects = counts.argmax(-1)[union_images, union_queries]
    indices = torch.from_numpy(np.stack([union_images, union_queries, union_objects])).to(device)
    return Pairs(*indices)
