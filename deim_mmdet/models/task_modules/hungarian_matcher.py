"""One-to-one matching of queries and objects (DETR, arXiv 2005.12872) of all sets at once."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from mmdet.registry import TASK_UTILS
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .pairs import Pairs, start_reading
from .targets import Targets

# This number of costs, with what is needed to add them up, still fits into a CPU's cache.
_CACHED_COSTS = 2**20
# From this number of assignment problems on, threads pay off.
_MANY_PROBLEMS = 32
_NUM_THREADS = min(4, os.cpu_count() or 1)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix='matching')


# A forked process has none of the threads.
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_pool.cache_clear)


class OneToOneMatcher:
    """Finds the pairs of queries and objects of lowest cost; a subclass says what a pair costs.

    mmdet's ``HungarianAssigner`` takes one image and one decoder layer. Here a GPU computes the
    costs of all layers and images together and sends them to the host in one transfer.
    """

    def costs(self, scores: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """Cost (S, B, Q, m) of each query with each of m objects; arguments as of :meth:`match`."""
        raise NotImplementedError

    def match(self, scores: Tensor, boxes: Tensor, targets: Targets) -> Callable[[], Pairs]:
        """Find the cheapest pairs of each set and image; none shares a query or an object.

        Args:
            scores: (S, B, Q, C) class logits of S sets of Q queries for B images.
            boxes: (S, B, Q, 4) as (cx, cy, w, h) in [0, 1].
            targets: The objects of the images.

        Returns:
            Function that waits for the costs and returns pairs on the host, set after set. Until
            it is called, the host can give a GPU other work. Where an image has more objects than
            queries, some objects have no pair.
        """
        images, sets = len(targets.counts), len(scores)
        if not targets.total:
            parts = []
        elif scores.device.type == 'cpu':
            # As many images at a time as have costs that stay in the cache.
            step = max(1, _CACHED_COSTS // (sets * scores.shape[2] * targets.max_count))
            parts = [slice(first, first + step) for first in range(0, images, step)]
        else:
            parts = [slice(None)]
        reads = []
        for part in parts:
            costs = self.costs(scores[:, part], boxes[:, part], targets.of_images(part))
            # Image by image, and with the objects before the queries: SciPy wants the shorter axis
            # first, and would exchange them problem by problem. It also wants double precision, and
            # converts each problem. All at once is slower: torch would wake all its threads, which
            # takes milliseconds where a GPU's host has many cores.
            reads.append(start_reading(costs.permute(1, 0, 3, 2).contiguous()))
        # On a CPU, torch's own threads wait for work and would take the cores from these threads.
        many = scores.device.type != 'cpu' and images * sets >= _MANY_PROBLEMS
        return lambda: self._cheapest(
            targets,
            sets,
            [image for read in reads for image in read().numpy()],
            _NUM_THREADS if many else 1,
        )

    @staticmethod
    def _cheapest(
        targets: Targets, num_sets: int, costs: Sequence[np.ndarray], threads: int
    ) -> Pairs:
        """Pairs of lowest cost, given the costs (S, m, Q) of each image; m may differ."""
        matched = np.full((num_sets, len(targets.counts), targets.max_count), -1)

        def match_images(first: int) -> None:
            for image in range(first, len(costs), threads):
                count = targets.counts[image]
                for set_index, cost in enumerate(costs[image][:, :count]):
                    objects, queries = linear_sum_assignment(cost)
                    matched[set_index, image, objects] = queries

        # While SciPy solves a problem, other threads can begin theirs.
        for _ in (map if threads == 1 else _pool().map)(match_images, range(threads)):
            pass
        sets, images, objects = (matched >= 0).nonzero()
        queries = matched[sets, images, objects]
        return Pairs(*map(torch.from_numpy, (images, queries, objects, sets)))


@TASK_UTILS.register_module()
class HungarianMatcher(OneToOneMatcher):
    """Matching by a focal classification cost, the L1 distance and the GIoU of the boxes.

    The focal cost is Deformable DETR's (arXiv 2010.04159). A cost that is NaN counts as 1.

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
        scores = scores.float()
        labels = _labels(scores, targets)
        if labels.shape[-1] < scores.shape[-1]:
            cost = self._focal_costs(scores.gather(-1, labels))
        else:
            cost = self._focal_costs(scores).gather(-1, labels)
        boxes, objects = _planes(boxes, targets)
        cost.add_((boxes - objects).abs_().sum(0), alpha=self.cost_bbox)
        cost.sub_(_pairwise_giou(boxes, objects), alpha=self.cost_iou)
        return cost.nan_to_num_(nan=1.0)

    def _focal_costs(self, scores: Tensor) -> Tensor:
        """Weighted focal cost of predicting a class instead of background."""
        probability = scores.sigmoid()
        rest = 1 - probability
        positive = (probability + 1e-8).log_().mul_(rest**self.gamma).mul_(-self.alpha)
        negative = rest.add_(1e-8).log_().mul_(probability**self.gamma).mul_(self.alpha - 1)
        return positive.sub_(negative).mul_(self.cost_class)


@TASK_UTILS.register_module()
class ScoreOverlapMatcher(OneToOneMatcher):
    """Matching by score and overlap alone: the cost of a pair is -p·IoU^power.

    p is the query's probability of the object's class. DEIMv2 (arXiv 2509.20787) matches by this
    cost in its last epochs, as ``late_matcher`` of
    :class:`~deim_mmdet.models.losses.SetCriterion`.

    Args:
        power: Exponent of the IoU.
    """

    def __init__(self, power: float = 4.0) -> None:
        self.power = power

    @torch.no_grad()
    def costs(self, scores: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """Cost (S, B, Q, m) of each query with each of m objects; arguments as of :meth:`match`."""
        scores = scores.float()
        cost = scores.gather(-1, _labels(scores, targets)).sigmoid_()
        intersection, union, _ = _areas(*_planes(boxes, targets))
        cost.mul_(intersection.div_(union).pow_(self.power)).neg_()
        return cost.nan_to_num_(nan=1.0)


def _labels(scores: Tensor, targets: Targets) -> Tensor:
    """Class (S, B, Q, m) of each object, for each query with logits (S, B, Q, C)."""
    labels = targets.labels.clamp(min=0)[None, :, None]
    return labels.expand(len(scores), -1, scores.shape[2], -1)


def _planes(boxes: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Boxes (4, S, B, Q, 1) of queries and (4, 1, B, 1, m) of objects, in single precision.

    Coordinates come first: planes of queries and objects stand behind each other in memory.
    """
    return (
        boxes.float().movedim(-1, 0)[..., None],
        targets.boxes.float().movedim(-1, 0)[:, None, :, None],
    )


def _pairwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """GIoU of (cx, cy, w, h) boxes (4, ...), broadcast against each other, in [-1, 1]."""
    intersection, union, hull = _areas(boxes, others)
    return intersection.div_(union).sub_(1).add_(union.div_(hull.clamp_(min=1e-9)))


def _areas(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of intersection, union and hull of (cx, cy, w, h) boxes (4, ...), broadcast.

    A negative size counts as 0, see :class:`~deim_mmdet.models.losses.OverlapTerm`.
    mmdet's ``bbox_overlaps`` does the same on stacked corners, with three times the memory traffic.
    """
    (centres, sizes), (other_centres, other_sizes) = (each.split(2) for each in (boxes, others))
    sizes = sizes.clamp(min=0)
    high = torch.minimum(centres.add(sizes, alpha=0.5), other_centres.add(other_sizes, alpha=0.5))
    low = torch.maximum(centres.sub(sizes, alpha=0.5), other_centres.sub(other_sizes, alpha=0.5))
    overlap = high.sub_(low)
    # A negative overlap is the gap between the boxes.
    hull = _area((sizes + other_sizes).sub_(overlap))
    intersection = _area(overlap.clamp_(min=0))
    union = (_area(sizes) + _area(other_sizes)).sub_(intersection).clamp_(min=1e-9)
    return intersection, union, hull


def _area(sides: Tensor) -> Tensor:
    """Area (...) of rectangles with the sides (2, ...)."""
    return sides[0] * sides[1]
