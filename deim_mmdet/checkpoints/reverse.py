"""Converts checkpoints of this package to the names of the reference implementations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .reference import DFINE, RTDETRV2, decoder_kind, name_table

#: The margin at the border within which anchors are invalid, as a share of the image.
ANCHOR_MARGIN = 0.01


def to_reference_state_dict(
    state_dict: Mapping[str, Tensor],
    strides: Sequence[int],
    num_points: Sequence[int],
    image_size: int | Sequence[int] = 640,
) -> dict[str, Tensor]:
    """State dict of a detector by the reference's names, with the buffers that it stores.

    Args:
        state_dict: Parameters by the names of this package.
        strides: Strides of the levels in pixels, finest first.
        num_points: Sampling points of the cross-attention on each level.
        image_size: Side of the square input in pixels, or (height, width), for which the reference
            stores anchors.

    Returns:
        The same tensors by reference name, and the buffers that the reference's strict loading
        wants: anchors and their validity, point scales, and second names of ``up`` and
        ``reg_scale``.

    Raises:
        ValueError: There are names that this package doesn't have; they are listed.
    """
    kind = decoder_kind(state_dict)
    renamed = _renamed(state_dict, kind)
    if kind != RTDETRV2:
        for name in ('up', 'reg_scale'):
            renamed[f'decoder.decoder.{name}'] = renamed[f'decoder.{name}']
    renamed['decoder.anchors'], renamed['decoder.valid_mask'] = _anchors(strides, image_size)
    scales = torch.tensor([1 / count for count in num_points for _ in range(count)])
    for name in list(renamed):
        if name.endswith('.cross_attn.sampling_offsets.weight'):
            renamed[name.replace('sampling_offsets.weight', 'num_points_scale')] = scales.clone()
    return renamed


def to_reference_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a backbone alone in the naming of the reference's ImageNet weights.

    Raises:
        ValueError: There are names that this package doesn't have; they are listed.
    """
    renamed = _renamed({f'backbone.{name}': value for name, value in state_dict.items()}, DFINE)
    return {name.removeprefix('backbone.'): value for name, value in renamed.items()}


def _renamed(state_dict: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    renamed = name_table(kind, reverse=True).renamed(state_dict, 'this package')
    if 'backbone.vit.storage_tokens' in state_dict:
        # DINOv3 has no wrapper, as DEIMv2's own vision transformers have.
        return {name.replace('.dinov3._model.', '.dinov3.'): v for name, v in renamed.items()}
    return renamed


def _anchors(strides: Sequence[int], image_size: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Anchors (1, N, 4) before the sigmoid, +∞ where invalid, and their validity (1, N, 1).

    They equal this package's own (``make_anchors``) but for rounding, which is the reference's.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    levels = []
    for level, stride in enumerate(strides):
        cells = [side // stride for side in sides]
        centres = [(torch.arange(count, dtype=torch.float32) + 0.5) / count for count in cells]
        y, x = torch.meshgrid(*centres, indexing='ij')
        size = torch.full_like(x, 0.05 * 2.0**level)
        levels.append(torch.stack([x, y, size, size], dim=-1).reshape(1, -1, 4))
    boxes = torch.cat(levels, dim=1)
    valid = ((boxes > ANCHOR_MARGIN) & (boxes < 1 - ANCHOR_MARGIN)).all(-1, keepdim=True)
    return torch.log(boxes / (1 - boxes)).masked_fill(~valid, torch.inf), valid
