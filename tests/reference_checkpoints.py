"""Checkpoints as the reference implementations write them, without their code."""

import functools

import golden
import torch
from torch import Tensor

MODELS = golden.NAMES
CLASS_LAYERS = ('score_head', 'denoising_class_embed')


def anchors(strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Anchors (1, N, 4) of a 640×640 input as the reference derives them, and their validity."""
    rows = []
    for level, stride in enumerate(strides):
        side = 640 // stride
        steps = (torch.arange(side).float() + 0.5) / side
        size = torch.tensor(0.05 * 2**level)
        rows += [torch.stack([x, y, size, size]) for y in steps for x in steps]
    boxes = torch.stack(rows)[None]
    valid = ((boxes > 0.01) * (boxes < 0.99)).all(-1, keepdim=True)
    return torch.where(valid, torch.log(boxes / (1 - boxes)), torch.inf), valid


@functools.lru_cache(maxsize=1)  # a large model has 250 MB
def _state_dict(name: str) -> dict[str, Tensor]:
    state_dict = {}
    for key, value in golden.reference_state_dict(name).items():
        counter = key.endswith('num_batches_tracked')
        state_dict[key] = value.long() if counter else value.float()
    levels = 2 if name in ('deim_dfine_n', 'dfine_n', 'deimv2_n', 'deimv2_pico') else 3
    boxes, valid = anchors((8, 16, 32)[-levels:])
    state_dict |= {'decoder.anchors': boxes, 'decoder.valid_mask': valid}
    points = [4, 4, 4] if 'rtdetr' in name else [3, 6, 3] if levels == 3 else [6, 6]
    if name == 'deimv2_pico':
        points = [4, 2]
    for key in state_dict:
        if key.endswith('num_points_scale'):
            state_dict[key] = torch.tensor([1 / n for n in points for _ in range(n)])
    return state_dict


def reference_state_dict(name: str, num_classes: int = 80) -> dict[str, Tensor]:
    """State dict of the reference model ``name``, filled, with the buffers that it derives.

    Single precision. With fewer classes, the first rows of the class layers.
    """
    return _of_classes(_state_dict(name), num_classes)


def reference_shapes(name: str, num_classes: int = 80) -> dict[str, Tensor]:
    """State dict of the reference model ``name`` without values: tensors of torch's meta device."""
    shapes = golden.shapes(name).items()
    empty = {key: torch.empty(shape, device='meta') for key, shape in shapes}
    return _of_classes(empty, num_classes)


def _of_classes(state_dict: dict[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    cut = dict(state_dict)
    for key, value in state_dict.items():
        if any(layer in key for layer in CLASS_LAYERS):
            rows = num_classes + ('denoising' in key)
            cut[key] = value[:rows].clone()
    return cut
