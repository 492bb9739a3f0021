"""Images of any number of channels as pictures to look at."""

import numpy as np

from .transforms.loading import LoadImageChecked, UnreadableImageError


def read_picture(path: str, backend_args: dict | None = None) -> np.ndarray:
    """An image of any kind to look at, (H, W, 3) uint8, BGR.

    Args:
        path: The file.
        backend_args: Storage backend, see :func:`mmengine.fileio.get`.

    Raises:
        UnreadableImageError: See :class:`LoadImageChecked`.
    """
    try:
        stored = _load(path, 'unchanged', backend_args)
    except UnreadableImageError:
        # Pages of several sizes are no channels, but the first is a picture.
        return _load(path, 'color', backend_args)
    if stored.dtype != np.uint8:
        # 'color' gives the upper 8 bits, which are 0 where few of the 16 are used.
        return as_picture(stored)
    try:
        return _load(path, 'color', backend_args)
    except UnreadableImageError:  # an array
        return as_picture(stored)


def _load(path: str, color_type: str, backend_args: dict | None) -> np.ndarray:
    loader = LoadImageChecked(color_type, backend_args=backend_args)
    return loader.transform({'img_path': path})['img']


def as_picture(img: np.ndarray) -> np.ndarray:
    """An image (H, W, C) to look at: (H, W, 3) uint8, BGR, from its least to its largest value.

    The first three channels are taken for red, green and blue. Of one or two channels the first is
    shown, in grey.
    """
    shown = img[..., 2::-1] if img.shape[2] > 3 else img if img.shape[2] == 3 else img[..., :1]
    shown = np.nan_to_num(shown.astype(np.float32))
    low, high = shown.min(), shown.max()
    shown = (shown - low) * (255 / max(high - low, 1e-9))
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)).astype(np.uint8))
