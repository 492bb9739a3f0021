"""The function that makes a batch of samples in a worker of a data loader."""

from collections.abc import Mapping, Sequence
from typing import Any

from deim_mmdet.utils.images import are_alike, stacked

from mmdet.registry import TRANSFORMS
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS

from ..utils.components import is_component
from .transforms import PackDetImage


# mmengine 0.10.7 looks for these functions in its own registry only.
@FUNCTIONS.register_module()
def stack_images(samples: Sequence) -> Any:
    """mmengine's ``pseudo_collate`` that also stacks images of one shape and type.

    They keep their layout, see :func:`~deim_mmdet.utils.images.stacked`. The training process gets
    one tensor, instead of many, to pin and to copy to the device.

    Args:
        samples: B samples. Those that are dictionaries have an image (C, H, W) in ``inputs``.

    Returns:
        What ``pseudo_collate`` gives. ``inputs`` is one tensor (B, C, H, W) where the images have
        one shape and type, a list of images otherwise.

    Example:
        >>> train_dataloader = dict(collate_fn=dict(type='stack_images'), ...)
    """
    batch = pseudo_collate(samples)
    if isinstance(batch, Mapping) and are_alike(batch.get('inputs', ())):
        batch['inputs'] = stacked(batch['inputs'])
    return batch


def stacking(dataloader: Mapping) -> dict:
    """The config of a data loader, with ``stack_images`` as collate function where that fits.

    It fits if the config names no collate function and the last transform of the data set is
    ``PackDetImage``. ``test_dataloader`` can't name the function itself: mmengine's inferencers
    (0.10.7) fail on a config with a ``collate_fn``.

    Args:
        dataloader: The config, which stays as it is.
    """
    dataset = dataloader.get('dataset')
    pipeline = dataset.get('pipeline') if isinstance(dataset, Mapping) else None
    stacks = bool(pipeline) and is_component(TRANSFORMS, pipeline[-1], PackDetImage)
    return (dict(collate_fn=dict(type='stack_images')) if stacks else {}) | dict(dataloader)
