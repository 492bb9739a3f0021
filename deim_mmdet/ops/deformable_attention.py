"""Multi-scale deformable attention with a number of points of its own on every level."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
) -> Tensor:
    """Sample every level bilinearly at given points and sum with given weights.

    Deformable DETR (arXiv 2010.04159), eq. 3, with n_l points on level l (D-FINE). Samples
    outside a level are zero; a location of 0 or 1 is the border of the outermost pixel.

    Args:
        value: (B, Σ H_l W_l, heads, C), levels one after another, rows first.
        spatial_shapes: (H_l, W_l) of each level.
        sampling_locations: (B, Q, heads, Σ n_l, 2) as (x, y), the level spanning [0, 1].
        attention_weights: (B, Q, heads, Σ n_l).
        num_points: n_l of each level.

    Returns:
        (B, Q, heads * C).

    Raises:
        ValueError: The number of tokens or points doesn't agree with ``spatial_shapes`` or
            ``num_points``.
    """
    batch, num_tokens, heads, channels = value.shape
    num_queries, total_points = sampling_locations.shape[1], sampling_locations.shape[3]
    sizes = [height * width for height, width in spatial_shapes]
    if sum(sizes) != num_tokens:
        raise ValueError(f'value has {num_tokens} tokens, but {spatial_shapes} need {sum(sizes)}')
    if sum(num_points) != total_points or len(num_points) != len(sizes):
        raise ValueError(
            f'num_points {tuple(num_points)} must hold one number a level ({len(sizes)} levels) '
            f'with the sum {total_points} of the sampling locations'
        )
    # Half precision has too few digits for a place in a large level.
    value = value.to(torch.promote_types(value.dtype, sampling_locations.dtype))
    # grid_sample wants one image a (sample, head) and coordinates in [-1, 1].
    levels = value.permute(0, 2, 3, 1).flatten(0, 1).split(sizes, dim=-1)
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
    sampled = [
        F.grid_sample(
            level.unflatten(-1, shape),
            grid.to(level.dtype),
            mode='bilinear',
            padding_mode='zeros',
            align_corners=False,
        )
        for level, shape, grid in zip(
            levels, spatial_shapes, grids.split(list(num_points), dim=2), strict=True
        )
    ]
    weights = attention_weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)
    summed = (torch.cat(sampled, dim=-1) * weights).sum(-1)
    return summed.view(batch, heads * channels, num_queries).transpose(1, 2)
