"""Layout of images in memory."""

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import default_collate


def are_alike(images: Sequence) -> bool:
    """Whether these are tensors of one shape and type, which can be stacked."""
    return all(isinstance(image, Tensor) for image in images) and (
        len({(image.shape, image.dtype) for image in images}) == 1
    )


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Images of one shape and type as one batch, in the layout that they have.

    Planes become a batch of planes. Views of pixels, as ``PackDetImage`` gives them, become a
    channels-last batch. A worker of a data loader puts the batch in shared memory, from where the
    training process takes it without a copy.

    Args:
        images: B images (C, H, W).

    Returns:
        (B, C, H, W) of the same type.
    """
    if all(image.is_contiguous() for image in images):
        return default_collate([*images])
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
