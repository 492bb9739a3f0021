"""Images of any number of channels as pictures to look at."""

import numpy as np

from .transforms.loading import (
    LoadImageChecked,
    MissingImageError,
    UnreadableImageError,
)


def read_picture(path: str) -> np.ndarray:
    """An image of any kind to look at, (H, W, 3) uint8, BGR.

    Raises:
        UnreadableImageError: As of :class:`LoadImageChecked`.
    """
    try:
        return LoadImageChecked().transform({'img_path': path})['img']
    except MissingImageError:
        raise
    except UnreadableImageError:
        return as_picture(LoadImageChecked('unchanged').transform({'img_path': path})['img'])


def as_picture(img: np.ndarray) -> np.ndarray:
    """An image (H, W, C) to look at: (H, W, 3) uint8, BGR, from its least to its largest value.

    The first three channels are taken for red, green and blue; of less than three, the first is.
    """
    shown = img[..., 2::-1] if img.shape[2] > 3 else img if img.shape[2] == 3 else img[..., :1]
    shown = np.nan_to_num(shown.astype(np.float32))
    low, high = shown.min(), shown.max()
    shown = (shown - low) * (255 / max(high - low, 1e-9))
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)).astype(np.uint8))
