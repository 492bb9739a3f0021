"""Multi-scale deformable attention; each level has its own number of points."""

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from .compiled import compiled_deformable_attention, reason_against

SAMPLING_METHODS = ('default', 'discrete')
_only_pytorch = False


@contextmanager
def pure_pytorch() -> Iterator[None]:
    """Context in which :func:`deformable_attention` takes PyTorch's own operators, in all threads.

    Exporters and programs without the compiled operator need it, and so do second derivatives. An
    export to ONNX takes this form by itself.
    """
    global _only_pytorch
    before, _only_pytorch = _only_pytorch, True
    try:
        yield
    finally:
        _only_pytorch = before


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
    method: str = 'default',
) -> Tensor:
    """Sample every level at given points and sum with given weights.

    See Deformable DETR (arXiv 2010.04159), eq. 3; level l has n_l points (D-FINE, RT-DETRv2). The
    'default' method samples bilinearly. Samples outside a level are zero; a location of 0 or 1 is
    the border of the level. The 'discrete' method of RT-DETRv2 (arXiv 2407.17140) takes the pixel
    floor(x · W + 0.5), clamped to the level. It needs no ``grid_sample``, and locations get no
    gradient.

    It runs as a compiled operator (docs/operators.md), or in PyTorch where there is none.

    Args:
        value: (B, Σ H_l · W_l, heads, C) tokens of B images, with C channels a head; one level
            after another, rows first.
        spatial_shapes: (H_l, W_l) of each level l.
        sampling_locations: (B, Q, heads, Σ n_l, 2) points (x, y) of Q queries; a level spans
            [0, 1].
        attention_weights: (B, Q, heads, Σ n_l) weights of these points.
        num_points: Number n_l of points on each level.
        method: 'default' or 'discrete'.

    Returns:
        (B, Q, heads · C), in the promoted type of the three tensors.

    Raises:
        ValueError: The number of tokens or points doesn't agree with ``spatial_shapes`` or
            ``num_points``, or there is no such method.
    """
    if method not in SAMPLING_METHODS:
        raise ValueError(f'method must be one of {SAMPLING_METHODS}, got {method!r}')
    num_tokens, total_points = value.shape[1], sampling_locations.shape[3]
    sizes = [height * width for height, width in spatial_shapes]
    if sum(sizes) != num_tokens:
        raise ValueError(f'value has {num_tokens} tokens, but {spatial_shapes} need {sum(sizes)}')
    if sum(num_points) != total_points or len(num_points) != len(sizes):
        raise ValueError(
            f'num_points {tuple(num_points)} must hold one number a level ({len(sizes)} levels) '
            f'with the sum {total_points} of the sampling locations'
        )
    arguments = (value, spatial_shapes, sampling_locations, attention_weights, num_points)
    if _only_pytorch or _in_onnx_export():
        return _pure_deformable_attention(*arguments, method)
    reason = reason_against(value, len(num_points))
    if not reason:
        return compiled_deformable_attention(*arguments, nearest=method == 'discrete')
    if not torch.compiler.is_compiling():
        _warn_of_pure_form(reason)
    return _pure_deformable_attention(*arguments, method)


def _in_onnx_export() -> bool:
    # torch's own answer takes half as long as the operator: asked only where something is traced.
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return traced and torch.onnx.is_in_onnx_export()


@functools.cache
def _warn_of_pure_form(reason: str) -> None:
    """Warn once for each reason."""
    warnings.warn(
        'Deformable attention runs in pure PyTorch, which is slower and takes more memory: the '
        f'compiled operators cannot be used, since {reason}. docs/operators.md tells how to get '
        'them.',
        stacklevel=3,
    )


def _pure_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
    method: str,
) -> Tensor:
    batch, _, heads, channels = value.shape
    num_queries = sampling_locations.shape[1]
    sizes = [height * width for height, width in spatial_shapes]
    sample = _sample_bilinearly if method == 'default' else _sample_nearest
    # Half precision has too few digits for a place in a large level.
    value = value.to(torch.promote_types(value.dtype, sampling_locations.dtype))
    # Each head of each image becomes an image of its own.
    levels = value.permute(0, 2, 3, 1).flatten(0, 1).split(sizes, dim=-1)
    points = sampling_locations.transpose(1, 2).flatten(0, 1).split(list(num_points), dim=2)
    sampled = [
        sample(level.reshape(-1, channels, *shape), locations)
        for level, shape, locations in zip(levels, spatial_shapes, points, strict=True)
    ]
    weights = attention_weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)
    summed = (torch.cat(sampled, dim=-1) * weights).sum(-1)
    return summed.view(batch, heads * channels, num_queries).transpose(1, 2)


def _sample_bilinearly(level: Tensor, locations: Tensor) -> Tensor:
    """Samples (N, C, Q, n) of images (N, C, H, W) at locations (N, Q, n, 2) in [0, 1]."""
    return F.grid_sample(
        level,
        (2 * locations - 1).to(level.dtype),
        mode='bilinear',
        padding_mode='zeros',
        align_corners=False,
    )


def _sample_nearest(level: Tensor, locations: Tensor) -> Tensor:
    """Like :func:`_sample_bilinearly`, but take the pixel floor(x · W + 0.5)."""
    height, width = level.shape[-2:]
    places = (locations.detach() * locations.new_tensor([width, height]) + 0.5).floor()
    x, y = places.nan_to_num(0).unbind(-1)
    index = y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()
    flat = index.flatten(1)[:, None].expand(-1, level.shape[1], -1)
    samples = level.flatten(2).gather(2, flat).reshape(*level.shape[:2], *index.shape[1:])
    return samples.masked_fill(places.isnan().any(-1)[:, None], math.nan)
