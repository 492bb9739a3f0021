"""One-to-one matching of queries and objects (DETR, arXiv 2005.12872) of all sets at once."""

import numpy as np
import torch
from mmdet.registry import TASK_UTILS
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .pairs import Pairs
from .targets import Targets


@TASK_UTILS.register_module()
class HungarianMatcher:
    """Matching by a focal classification cost, the L1 distance and the GIoU of the boxes.

    mmdet's ``HungarianAssigner`` takes one image and one decoder layer. Here a GPU computes the
    costs of all layers and images together and sends them to the host in one transfer.

    Args:
        cost_class: Weight of the focal cost.
        cost_bbox: Weight of the L1 distance of normalised boxes.
        cost_iou: Weight of -GIoU.
        alpha: Weight α of the object's class in the focal cost; 1 - α is that of the background.
        gamma: Exponent γ of the focal cost.
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
        """Cost (S, B, Q, m) of each query with each of m objects; arguments as of :meth:`match`."""
        scores, boxes = scores.float(), boxes.float()
        labels = targets.labels.clamp(min=0)[None, :, None]
        labels = labels.expand(len(scores), -1, scores.shape[2], -1)
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

    def match(self, scores: Tensor, boxes: Tensor, targets: Targets) -> Pairs:
        """Find the cheapest pairs of each set and image; none shares a query or an object.

        Args:
            scores: (S, B, Q, C) class logits of S sets of Q queries for B images.
            boxes: (S, B, Q, 4) as (cx, cy, w, h).
            targets: The objects.

        Returns:
            Pairs on the host, set after set. Where an image has more objects than queries, some
            objects have no pair.
        """
        matched = np.full((len(scores), len(targets.counts), targets.max_count), -1)
        # A GPU takes all images at once; a CPU one after another, so that the costs stay in cache.
        step = 1 if scores.device.type == 'cpu' else len(targets.counts)
        for start in range(0, len(targets.counts) if targets.total else 0, step):
            images = slice(start, start + step)
            part = targets.of_images(images)
            costs = self.costs(scores[:, images], boxes[:, images], part).cpu().numpy()
            for index, count in enumerate(part.counts):
                for set_index, set_costs in enumerate(costs[:, index, :, :count]):
                    queries, objects = linear_sum_assignment(set_costs)
                    matched[set_index, start + index, objects] = queries
        sets, images, objects = (matched >= 0).nonzero()
        queries = matched[sets, images, objects]
        return Pairs(*map(torch.from_numpy, (images, queries, objects, sets)))


def _pairwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """GIoU of (cx, cy, w, h) boxes (..., 4), broadcast against each other, in [-1, 1].

    A negative size counts as 0, see :class:`~deim_mmdet.models.losses.OverlapTerm`.
    mmdet's ``bbox_overlaps`` does the same on stacked corners, with three times the memory traffic.
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
