"""What makes a batch of samples in a worker of a data loader."""

from collections.abc import Mapping, Sequence
from typing import Any

from deim_mmdet.utils.images import are_alike, stacked

from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS


# In mmengine's own registry, the only one where it looks for these functions.
@FUNCTIONS.register_module()
def stack_images(samples: Sequence) -> Any:
    """mmengine's ``pseudo_collate`` that also stacks images of one shape and type.

    They are stacked in the layout that they have, see :func:`~deim_mmdet.utils.images.stacked`:
    one tensor is handed to the training process, pinned and copied to the device, instead of many.

    Args:
        samples: B samples. Those that are dictionaries have an image (3, H, W) in ``inputs``.

    Returns:
        What ``pseudo_collate`` gives, with ``inputs`` as one tensor (B, 3, H, W) where the images
        are of one shape and type; a list of them otherwise.

    Example:
        >>> train_dataloader = dict(collate_fn=dict(type='stack_images'), ...)
    """
    batch = pseudo_collate(samples)
    if isinstance(batch, Mapping) and are_alike(batch.get('inputs', ())):
        batch['inputs'] = stacked(batch['inputs'])
    return batch
