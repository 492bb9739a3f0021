"""Forms of boxes; few operations, since a GPU starts a kernel for each."""

import torch
from torch import Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) as (cx, cy, w, h) to (x1, y1, x2, y2).

    mmdet's ``bbox_cxcywh_to_xyxy`` does it coordinate by coordinate, with three times the kernels.
    """
    centres, sizes = boxes.split(2, dim=-1)
    return torch.cat([centres.sub(sizes, alpha=0.5), centres.add(sizes, alpha=0.5)], dim=-1)


def to_centres(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) as (x1, y1, x2, y2) to (cx, cy, w, h)."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([torch.lerp(low, high, 0.5), high - low], dim=-1)


def paired_iou(boxes: Tensor, others: Tensor, eps: float = 1e-9) -> Tensor:
    """IoU (...) in [0, 1] of pairs of boxes (..., 4) as (x1, y1, x2, y2).

    mmdet's ``bbox_overlaps`` makes a tensor of ``eps`` at each call, for which a GPU's host waits.

    Args:
        boxes: One box of each pair.
        others: The other one.
        eps: The least union; a pair of empty boxes has the IoU 0.
    """
    intersection, union = _paired_areas(boxes, others)
    return intersection / union.clamp(min=eps)


def paired_giou(boxes: Tensor, others: Tensor, eps: float = 1e-9) -> Tensor:
    """GIoU (...) in [-1, 1] (arXiv 1902.09630); see :func:`paired_iou`."""
    intersection, union = _paired_areas(boxes, others)
    (low, high), (other_low, other_high) = (each.split(2, dim=-1) for each in (boxes, others))
    hull = _area(torch.maximum(high, other_high) - torch.minimum(low, other_low)).clamp(min=eps)
    union = union.clamp(min=eps)
    return intersection / union - (hull - union) / hull


def _paired_areas(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Areas (...) of the intersection and the union of each pair."""
    (low, high), (other_low, other_high) = (each.split(2, dim=-1) for each in (boxes, others))
    overlap = torch.minimum(high, other_high) - torch.maximum(low, other_low)
    intersection = _area(overlap.clamp(min=0))
    return intersection, _area(high - low) + _area(other_high - other_low) - intersection


def _area(sides: Tensor) -> Tensor:
    """Area (...) of rectangles with the sides (..., 2)."""
    width, height = sides.unbind(-1)
    return width * height
