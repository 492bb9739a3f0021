"""One-to-one matching of queries and objects (DETR, arXiv 2005.12872) of all sets at once."""

from dataclasses import dataclass

import numpy as np
import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
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
        num_sets, _, num_queries, _ = scores.shape
        labels = targets.labels[None, :, None].expand(num_sets, -1, num_queries, -1)
        probability = scores.float().gather(-1, labels).sigmoid()
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        boxes = boxes.float()
        target_boxes = targets.boxes.float().expand(num_sets, -1, -1, -1)
        giou = bbox_overlaps(
            bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(target_boxes), mode='giou', eps=1e-9
        )
        distance = torch.cdist(boxes, target_boxes, p=1)
        cost = self.cost_class * (positive - negative)
        cost += self.cost_bbox * distance
        cost -= self.cost_iou * giou
        return cost.nan_to_num(nan=1.0)

    def match(self, scores: Tensor, boxes: Tensor, targets: Targets) -> np.ndarray:
        """Query matched to each object in each set: (S, B, m) int64, -1 for padding.

        Where an image has more objects than queries, the objects left over are -1 too.
        """
        matched = np.full((len(scores), len(targets.counts), targets.max_count), -1)
        if targets.total == 0:
            return matched
        costs = self.costs(scores, boxes, targets).cpu().numpy()
        for set_index, set_costs in enumerate(costs):
            for image, count in enumerate(targets.counts):
                queries, objects = linear_sum_assignment(set_costs[image, :, :count])
                matched[set_index, image, objects] = queries
        return matched


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
