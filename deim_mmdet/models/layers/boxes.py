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
