"""Boxes as distributions over distances: the fine-grained distribution refinement of D-FINE.

D-FINE (arXiv 2410.13842), section 4.1. Every side of a box is a distribution over ``reg_max + 1``
bins; bin n stands for the distance W(n) of the side from that of a reference box, in units of the
reference box's width or height over ``reg_scale``.
"""

import torch
from torch import Tensor


def weighting_function(reg_max: int, up: Tensor, reg_scale: Tensor) -> Tensor:
    """Distances W(n) of the bins, (reg_max + 1,), increasing and odd about the middle bin.

    The inner bins lie on an exponential, fine about 0; the two outermost ones at ±2 up·reg_scale.

    Args:
        reg_max: Even number of intervals between bins.
        up: (1,) upper bound of the exponential in units of the reference box.
        reg_scale: (1,) its steepness.
    """
    bound = (up * reg_scale).abs()
    half = reg_max // 2
    exponents = torch.arange(half, device=up.device, dtype=up.dtype)
    positive = (bound + 1) ** (exponents * 2 / (reg_max - 2)) - 1
    positive = torch.cat([positive, 2 * bound])
    return torch.cat([-positive[1:].flip(0), positive])


def expected_distances(logits: Tensor, weights: Tensor) -> Tensor:
    """Mean distance of each side: logits (..., 4 · bins) and W (bins,) to (..., 4)."""
    probabilities = logits.reshape(*logits.shape[:-1], 4, len(weights)).softmax(-1)
    # A product and sum rather than a matrix product, which autocast would run in half precision.
    return (probabilities * weights).sum(-1)


def distances_to_boxes(references: Tensor, distances: Tensor, reg_scale: Tensor) -> Tensor:
    """Boxes whose sides lie at ``distances`` from those of the references.

    Args:
        references: (..., 4) as (cx, cy, w, h).
        distances: (..., 4) of the left, top, right and bottom side, positive outwards.
        reg_scale: (1,).

    Returns:
        (..., 4) as (cx, cy, w, h).
    """
    scale = reg_scale.abs()
    centres, sizes = references.split(2, dim=-1)
    unit = sizes / scale
    low = centres - (0.5 * scale + distances[..., :2]) * unit
    high = centres + (0.5 * scale + distances[..., 2:]) * unit
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def boxes_to_bins(
    references: Tensor, boxes: Tensor, weights: Tensor, reg_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The two bins between which each side of a box lies, seen from a reference box.

    Args:
        references: (N, 4) as (cx, cy, w, h).
        boxes: (N, 4) as (x1, y1, x2, y2), in the same unit.
        weights: W (bins,).
        reg_scale: (1,).

    Returns:
        The lower bin (N, 4), int64 in [0, bins - 2], and the weight of the upper one (N, 4) in
        [0, 1]. Distances beyond the table get the outermost bin.
    """
    scale = reg_scale.abs()
    centres, sizes = references.split(2, dim=-1)
    unit = sizes / scale + 1e-16
    low = (centres - boxes[..., :2]) / unit - 0.5 * scale
    high = (boxes[..., 2:] - centres) / unit - 0.5 * scale
    distances = torch.cat([low, high], dim=-1)
    lower = (torch.searchsorted(weights, distances, right=True) - 1).clamp(0, len(weights) - 2)
    left, right = weights[lower], weights[lower + 1]
    return lower, ((distances - left) / (right - left)).clamp(0, 1)
