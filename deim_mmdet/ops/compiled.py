"""The compiled operator: loaded here, and described to autograd, ``torch.compile`` and export."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import compat
from . import library

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Limits of the kernels: see kMaxLevels and kThreads in csrc/.
MAX_LEVELS = 8
MAX_CUDA_CHANNELS = 128
NAME = 'deim_mmdet::deformable_attention'

# Why there is no compiled operator; empty where there is one.
MISSING = library.load()
DEVICES = [
    device
    for device, key in (('cpu', 'CPU'), ('cuda', 'CUDA'))
    if not MISSING and compat.has_kernel(NAME, key)
]


def reason_against(value: Tensor, num_levels: int) -> str:
    """Why the compiled operator can't be used; empty where it can.

    Args:
        value: (B, N, heads, C), see :func:`deformable_attention`.
        num_levels: Number of levels.
    """
    if MISSING:
        return MISSING
    # Faster than the name of the device.
    device = 'cpu' if value.is_cpu else 'cuda' if value.is_cuda else value.device.type
    if device not in DEVICES:
        return f'they were compiled without kernels for {device}'
    if value.dtype not in FLOATS:
        return f'they have no kernel for {value.dtype}'
    if num_levels > MAX_LEVELS:
        return f'they take at most {MAX_LEVELS} levels'
    if device == 'cuda' and value.shape[3] > MAX_CUDA_CHANNELS:
        return f'they take at most {MAX_CUDA_CHANNELS} channels a head on a GPU'
    return ''


def compiled_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
    nearest: bool,
) -> Tensor:
    """Compute :func:`deformable_attention`, which has checked the arguments.

    ``nearest`` stands for its method 'discrete'. Samples are computed and summed in float32, or in
    float64 where one of the tensors is. A value in half precision is read as it is.
    """
    types = {value.dtype, sampling_locations.dtype, attention_weights.dtype}
    computed = torch.float64 if torch.float64 in types else torch.float32
    out = OPERATOR(
        _converted(value, computed) if computed == torch.float64 else value,
        _converted(sampling_locations, computed),
        _converted(attention_weights, computed),
        [side for shape in spatial_shapes for side in shape],
        num_points,
        nearest,
    )
    # The promoted type of all three.
    return _converted(out, types.pop() if len(types) == 1 else computed)


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``, whose call would take time even where it changes nothing."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _register() -> None:
    def fake_forward(value, locations, attention, spatial_shapes, num_points, nearest):
        batch, queries, heads = locations.shape[:3]
        return locations.new_empty(batch, queries, heads * value.shape[3])

    def fake_backward(grad_out, value, locations, attention, spatial_shapes, num_points, nearest):
        return (
            value.new_empty(value.shape),
            locations.new_empty(0 if nearest else locations.shape),
            attention.new_empty(attention.shape),
        )

    torch.library.register_fake(NAME, fake_forward)
    torch.library.register_fake(f'{NAME}_backward', fake_backward)


if not MISSING:
    _register()
    OPERATOR = torch.ops.deim_mmdet.deformable_attention.default
