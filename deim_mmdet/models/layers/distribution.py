"""Boxes as distributions over distances: the fine-grained distribution refinement of D-FINE.

See D-FINE (arXiv 2410.13842), section 4.1. Each side of a box has a distribution over
``reg_max + 1`` bins. Bin n stands for a distance W(n) from the same side of a reference box. The
unit is the width or height of the reference box over ``reg_scale``. ``bin_distances`` is the table
of all W(n).
"""

import torch
from torch import Tensor

from .predictions import full_precision


def weighting_function(reg_max: int, up: Tensor, reg_scale: Tensor) -> Tensor:
    """The table ``bin_distances`` (reg_max + 1,) in float32 at least.

    It increases and is symmetric about 0. The inner bins lie on an exponential, so that they are
    finest near 0. The two outermost bins lie at ±2 · up · reg_scale.

    Args:
        reg_max: Number of intervals between bins; even, at least 4.
        up: (1,) upper bound of the exponential, in sides of the reference box.
        reg_scale: (1,) steepness of the exponential.
    """
    bound = (full_precision(up) * full_precision(reg_scale)).abs()
    half = reg_max // 2
    exponents = torch.arange(half, device=bound.device, dtype=bound.dtype)
    positive = (bound + 1) ** (exponents * 2 / (reg_max - 2)) - 1
    positive = torch.cat([positive, 2 * bound])
    return torch.cat([-positive[1:].flip(0), positive])


def bin_probabilities(logits: Tensor) -> Tensor:
    """Probabilities (..., 4, bins) of the bins of each side; ``logits`` are (..., 4 · bins)."""
    return logits.reshape(*logits.shape[:-1], 4, -1).softmax(-1)


def expected_distances(probabilities: Tensor, bin_distances: Tensor) -> Tensor:
    """Mean distance (..., 4) of each side of a box.

    Args:
        probabilities: (..., 4, bins) of the bins of each side.
        bin_distances: (bins,) table W(n).
    """
    # Not a matrix product, which autocast would run in half precision.
    return (probabilities * bin_distances).sum(-1)


def distances_to_boxes(references: Tensor, distances: Tensor, reg_scale: Tensor) -> Tensor:
    """Boxes whose sides lie at ``distances`` from those of the references.

    Args:
        references: (..., 4) as (cx, cy, w, h).
        distances: (..., 4) of the left, top, right and bottom side, positive outwards.
        reg_scale: (1,) number of units in a side of the reference box.

    Returns:
        (..., 4) as (cx, cy, w, h).
    """
    centres, sizes = references.split(2, dim=-1)
    low, high = distances.split(2, dim=-1)
    unit = sizes / reg_scale.abs()
    centres = torch.addcmul(centres, high - low, unit, value=0.5)
    return torch.cat([centres, torch.addcmul(sizes, high + low, unit)], dim=-1)


def boxes_to_bins(
    references: Tensor, boxes: Tensor, bin_distances: Tensor, reg_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The two bins between which each side of a box lies, seen from a reference box.

    Args:
        references: (N, 4) as (cx, cy, w, h).
        boxes: (N, 4) as (x1, y1, x2, y2), in the same unit.
        bin_distances: (bins,) table W(n).
        reg_scale: (1,) number of units in a side of the reference box.

    Returns:
        The lower bin (N, 4), int64 in [0, bins - 2], and the weight of the upper bin (N, 4) in
        [0, 1]. Distances beyond the table get the outermost bin.
    """
    scale = reg_scale.abs()
    centres, sizes = references.split(2, dim=-1)
    unit = sizes / scale + 1e-16
    # (N, 2, 2): from the centre to the upper left and to the lower right corner, then outwards.
    distances = (boxes.unflatten(-1, (2, 2)) - centres[:, None]) / unit[:, None]
    distances[:, 0].neg_()
    distances = distances.sub_(scale, alpha=0.5).flatten(1)
    lower = torch.searchsorted(bin_distances, distances, right=True) - 1
    lower = lower.clamp_(0, len(bin_distances) - 2)
    weight = (distances - bin_distances[lower]) / bin_distances.diff()[lower]
    return lower, weight.clamp_(0, 1)
