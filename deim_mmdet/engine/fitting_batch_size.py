"""Finds the batch size that a GPU's memory holds, by trying training steps."""

import copy
import gc
from collections.abc import Callable

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from ..models.data_preprocessors import DenseO2OMultiScale
from ..models.data_preprocessors.multi_scale import training_sizes
from ..models.layers.input_channels import input_channels
from ..utils.components import find_components
from .devices import laid_out, optimizer_options, set_precision
from .faults import RunFault
from .image_size import SIZE_STEP, input_sizes

#: The share of the memory that a training may take; other programs and fragments need the rest.
SHARE = 0.9
#: Objects of an image in the trials, more than nearly all images have, mosaics included.
OBJECTS = 100
LIMIT = 1024


def largest_fitting(fits: Callable[[int], bool], limit: int = LIMIT) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, 16, … up to ``limit`` for which ``fits`` holds.

    Args:
        fits: Says whether a number fits; none fits that is larger than one that doesn't.
        limit: The largest number to try.

    Returns:
        The number; 0 where not even 1 fits.
    """
    best, size = 0, 1
    while size <= limit and fits(size):
        best, size = size, 2 * size
    between = best * 3 // 2
    return between if best < between <= limit and size <= limit and fits(between) else best


def fitting_batch_size(cfg: Config, device: str | None = None) -> int:
    """The largest batch size, of powers of two and 1.5 times these, whose training steps fit.

    Each trial takes two steps with images of the largest size of multi-scale training and
    :data:`OBJECTS` objects. It may take up to :data:`SHARE` of the GPU's memory.

    Args:
        cfg: Config of a training; it stays as it is.
        device: Default: the one that a training would take.

    Raises:
        RunFault: Not even one image fits, there is no GPU, or the images have no fixed size.
    """
    device = device or get_device()
    if not torch.device(device).type == 'cuda':
        raise RunFault(
            f'--batch-size auto measures the memory of a GPU, and this is device {device}: give a '
            'number'
        )
    if not input_sizes(cfg):
        raise RunFault(
            '--batch-size auto tries images of the size that the training pipeline resizes to, and '
            'finds no fixed one: give a number'
        )
    # No runner has done it yet.
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    set_precision('cuda', cfg.get('env_cfg', {}))
    found = largest_fitting(lambda size: _fits(cfg, size, device))
    if not found:
        raise RunFault(
            'not even a batch of one image fits into the memory of the GPU: lower image_size, '
            'train with --amp, or set model.backbone.with_cp=True for a ResNet or a ViT'
        )
    print_log(f'--batch-size auto: {found}', logger='current')
    return found


def _fits(cfg: Config, batch_size: int, device: str) -> bool:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        take_steps(cfg, batch_size, device)
    except torch.OutOfMemoryError:
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_reserved() <= SHARE * total


def take_steps(cfg: Config, batch_size: int, device: str, steps: int = 2) -> None:
    """Train a new model of a config for a few steps with images of the largest size.

    Args:
        cfg: Config of a training; it stays as it is.
        batch_size: Number of images.
        device: Where to train.
        steps: From the second step on there are the optimiser's moments, too.
    """
    settings = copy.deepcopy(cfg.model)
    if settings.get('backbone'):
        settings.backbone.init_cfg = None
    size = next(iter(input_sizes(cfg)))
    preprocessor = settings.get('data_preprocessor') or {}
    for multi_scale in find_components(MODELS, preprocessor, DenseO2OMultiScale):
        built = MODELS.build(multi_scale)
        base = built.base_size or max(size)
        largest = training_sizes(base, built.base_size_repeat)[-1]
        size = tuple(round(side * largest / base / SIZE_STEP) * SIZE_STEP for side in size)
        # The images come in the largest size and keep it.
        multi_scale.update(base_size=None, base_size_repeat=None)
    kind = torch.device(device).type
    model = laid_out(MODELS.build(settings), kind, cfg.get('env_cfg', {})).to(device).train()
    wrapper = build_optim_wrapper(model, copy.deepcopy(optimizer_options(cfg.optim_wrapper, kind)))
    for _ in range(steps):
        model.train_step(_batch(model, batch_size, size), wrapper)


def random_samples(
    number: int, size: tuple[int, int], objects: int, num_classes: int
) -> list[DetDataSample]:
    """Data samples with random objects, the same in each call.

    Args:
        number: Number of samples.
        size: Height and width of the images in pixels.
        objects: Number of objects in each.
        num_classes: Number of categories, from which labels are drawn.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = size
    samples = []
    for _ in range(number):
        corners = torch.rand(objects, 2, 2, generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor([width, height])).flatten(1)
        labels = torch.randint(num_classes, (objects,), generator=generator)
        sample = DetDataSample(
            metainfo=dict(img_shape=size, batch_input_shape=size, pad_shape=size, img_path='')
        )
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        samples.append(sample)
    return samples


def _batch(model: torch.nn.Module, batch_size: int, size: tuple[int, int]) -> dict:
    """Random images and objects, as a data loader gives them."""
    samples = random_samples(batch_size, size, OBJECTS, model.bbox_head.num_classes)
    shape = (input_channels(model), *size)
    images = [torch.randint(256, shape, dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)
