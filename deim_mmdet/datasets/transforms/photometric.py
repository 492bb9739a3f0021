"""Photometric distortion of Dense O2O."""

from collections.abc import Sequence

from deim_mmdet.utils.arguments import check_number, check_range, described

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from .decoding import PIXEL_TYPES

# Share of blue, green and red in the grey of a pixel (ITU-R BT.601).
GREY = np.array([0.114, 0.587, 0.299])


@TRANSFORMS.register_module()
class DenseO2OPhotometricDistort(BaseTransform):
    """Change brightness, contrast, saturation, hue and the order of the channels.

    Each change has the probability ``prob``. They happen in this order, but contrast comes after
    saturation and hue in half of all cases. Factors are drawn uniformly. Unlike in mmdet's
    ``PhotoMetricDistortion``, brightness is a factor, and contrast keeps the mean grey.

    Images that don't have three channels change in brightness and contrast alone, and their
    contrast keeps the mean of each channel. Values stay within the range of their type.

    Required and modified key: ``img`` (H, W, 3) in BGR order, or (H, W) or (H, W, C); uint8,
    uint16, int16 or float32. Boxes stay.

    Args:
        prob: Probability of each of the five. Default 0.5.
        brightness: Range of the factor on the pixels. Default (0.875, 1.125).
        contrast: Range of the factor on the distance from the mean grey. Default (0.5, 1.5).
        saturation: Range of the factor on the distance from the pixel's grey. Default (0.5, 1.5).
        hue: Range of the turn of the hue, as a fraction of the circle, in [-0.5, 0.5]. Default
            (-0.05, 0.05).

    Raises:
        ValueError: An argument is out of range.
        TypeError: The image has another type or number of axes.

    Example:
        >>> pipeline = [
        ...     dict(type='LoadImageFromFile'),
        ...     dict(type='LoadAnnotations', with_bbox=True),
        ...     dict(type='DenseO2OPhotometricDistort'),
        ...     dict(type='PackDetInputs')]
    """

    def __init__(
        self,
        prob: float = 0.5,
        brightness: Sequence[float] = (0.875, 1.125),
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: Sequence[float] = (-0.05, 0.05),
    ) -> None:
        self.prob = check_number(self, 'prob', prob, 0, 1)
        self.brightness = check_range(self, 'brightness', brightness, lowest=0)
        self.contrast = check_range(self, 'contrast', contrast, lowest=0)
        self.saturation = check_range(self, 'saturation', saturation, lowest=0)
        self.hue = check_range(self, 'hue', hue, -0.5, 0.5)

    def transform(self, results: dict) -> dict:
        """Distort the image."""
        img = results['img']
        if img.dtype not in PIXEL_TYPES or img.ndim not in (2, 3):
            raise TypeError(
                f'{type(self).__name__} needs an image (H, W, C) of uint8, uint16, int16 or '
                f'float32, got {img.dtype} of shape {img.shape}: load with LoadImageChecked'
            )
        in_colour = img.shape[2:] == (3,)
        brightness, contrast, saturation, hue, permutation = np.random.rand(5) < self.prob
        contrast_first = np.random.rand() < 0.5
        if brightness:
            img = adjust_brightness(img, np.random.uniform(*self.brightness))
        if contrast and contrast_first:
            img = adjust_contrast(img, np.random.uniform(*self.contrast))
        if saturation and in_colour:
            img = adjust_saturation(img, np.random.uniform(*self.saturation))
        if hue and in_colour:
            img = adjust_hue(img, np.random.uniform(*self.hue))
        if contrast and not contrast_first:
            img = adjust_contrast(img, np.random.uniform(*self.contrast))
        if permutation and in_colour:
            img = permute_channels(img, np.random.permutation(3))
        # OpenCV drops a single channel's axis.
        results['img'] = img.reshape(results['img'].shape)
        return results

    __repr__ = described


def adjust_brightness(img: np.ndarray, factor: float) -> np.ndarray:
    """``factor`` x image, for (H, W, C)."""
    if img.dtype == np.uint8:
        return cv2.convertScaleAbs(img, alpha=factor)
    return cv2.addWeighted(img, factor, img, 0, 0)


def adjust_contrast(img: np.ndarray, factor: float) -> np.ndarray:
    """``factor`` x image + (1 - ``factor``) x mean grey of the image, for (H, W, 3) BGR.

    With another number of channels: the mean of each channel in the place of the mean grey.
    """
    if img.shape[2:] != (3,):
        means = img.reshape(img.shape[0] * img.shape[1], -1).mean(0, dtype=np.float64)
        scale = factor * np.eye(len(means))
        return cv2.transform(img, np.column_stack([scale, (1 - factor) * means]))
    mean = np.dot(cv2.mean(img)[:3], GREY)
    # No other function of OpenCV scales, adds a number and saturates at both ends at once.
    return cv2.addWeighted(img, factor, img, 0, (1 - factor) * mean)


def adjust_saturation(img: np.ndarray, factor: float) -> np.ndarray:
    """``factor`` x image + (1 - ``factor``) x grey image, for (H, W, 3) BGR."""
    return cv2.transform(img, factor * np.eye(3) + (1 - factor) * GREY)


def adjust_hue(img: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue by a fraction of the circle, of 8 bits to 1/256 of it, for (H, W, 3) BGR."""
    if img.dtype != np.uint8:
        hsv = cv2.cvtColor(img.astype(np.float32), cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
        turned = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        return turned if img.dtype == np.float32 else np.rint(turned).astype(img.dtype)
    hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV_FULL)
    height, width = hsv.shape[:2]
    # uint8 wraps around, as the circle does. numpy is slow on three numbers at a time.
    row = np.tile(np.array([round(turn * 256) % 256, 0, 0], dtype=np.uint8), width)
    rows = hsv.reshape(height, 3 * width)
    np.add(rows, row, out=rows)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)


def permute_channels(img: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Channel ``order[k]`` as channel k, for (H, W, 3)."""
    return cv2.transform(img, np.eye(3)[list(order)])
