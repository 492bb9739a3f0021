"""Forms of boxes; few operations, since a GPU starts a kernel for each."""

import torch
from torch import Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) as (cx, cy, w, h) to (x1, y1, x2, y2).

    mmdet's ``bbox_cxcywh_to_xyxy`` does it coordinate by coordinate, with three times the kernels.
    """
    return corners_around(*boxes.split(2, dim=-1))


def corners_around(centres: Tensor, sizes: Tensor) -> Tensor:
    """Corners (..., 4) as (x1, y1, x2, y2) of boxes with centres (..., 2) and sizes (..., 2)."""
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
    sides, other_sides, overlap = _paired_sides(boxes, others)
    intersection = _area(overlap.clamp(min=0))
    return intersection / _union(sides, other_sides, intersection, eps)


def paired_giou(boxes: Tensor, others: Tensor, eps: float = 1e-9) -> Tensor:
    """GIoU (...) in [-1, 1] (arXiv 1902.09630); arguments as of :func:`paired_iou`."""
    sides, other_sides, overlap = _paired_sides(boxes, others)
    intersection = _area(overlap.clamp(min=0))
    union = _union(sides, other_sides, intersection, eps)
    # A negative overlap is the gap between the boxes.
    hull = _area(sides + other_sides - overlap).clamp(min=eps)
    return intersection / union + union / hull - 1


def _paired_sides(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Width and height (..., 2) of both boxes and of their overlap, which may be negative."""
    (low, high), (other_low, other_high) = (each.split(2, dim=-1) for each in (boxes, others))
    overlap = torch.minimum(high, other_high) - torch.maximum(low, other_low)
    return high - low, other_high - other_low, overlap


def _union(sides: Tensor, other_sides: Tensor, intersection: Tensor, eps: float) -> Tensor:
    return (_area(sides) + _area(other_sides) - intersection).clamp(min=eps)


def _area(sides: Tensor) -> Tensor:
    """Area (...) of rectangles with the sides (..., 2)."""
    width, height = sides.unbind(-1)
    return width * height
