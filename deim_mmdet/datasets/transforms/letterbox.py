"""Resizing to the network's input with the image's own proportions."""

import numpy as np
from mmdet.datasets.transforms import Pad, Resize
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
class Letterbox(Resize):
    """Resize to the largest size that fits into the input, and pad at the right and below.

    mmdet's ``Resize`` and ``Pad`` in one transform. ``Resize(keep_ratio=True)`` would not do: it
    takes ``scale`` for the longer and the shorter side, so that an upright image doesn't fit into a
    wide input. Predictions come back to the pixels of the image by ``scale_factor``.

    Args:
        scale: Side of a square input in pixels, or (width, height).
        pad_val: Value of the padding in all channels. Default: 114, a middle grey, for 8 bits, and
            0 for 16 bits and floats.

    Example:
        >>> test_pipeline = [
        ...     dict(type='LoadImageFromFile'), dict(type='Letterbox', scale=(640, 640)),
        ...     dict(type='PackDetInputs')]
    """

    def __init__(self, scale: int | tuple[int, int], pad_val: float | None = None) -> None:
        super().__init__(scale=scale)
        self.pad_val = pad_val
        self._pad = Pad(size=self.scale)

    def transform(self, results: dict) -> dict:
        """Resize and pad image, masks and semantic map; resize boxes."""
        height, width = results['img'].shape[:2]
        factor = min(self.scale[0] / width, self.scale[1] / height)
        # A very long image keeps a line of pixels.
        fitting = max(int(width * factor + 0.5), 1), max(int(height * factor + 0.5), 1)
        results = Resize(scale=fitting)(results)
        img = results['img']
        pad_val = self.pad_val
        if pad_val is None:
            pad_val = 114 if img.dtype == np.uint8 else 0
        canvas = np.full((*self.scale[::-1], *img.shape[2:]), pad_val, img.dtype)
        canvas[: img.shape[0], : img.shape[1]] = img
        # OpenCV pads four channels at most: mmdet's transform gets one of them, and all else.
        results['img'] = img[..., 0] if img.ndim == 3 else img
        results = self._pad(results)
        results['img'], results['pad_shape'] = canvas, canvas.shape
        return results
