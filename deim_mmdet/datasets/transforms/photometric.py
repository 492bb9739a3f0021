"""Photometric distortion of Dense O2O."""

from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from deim_mmdet.utils.arguments import check_probability, check_range

LEVELS = np.arange(256, dtype=np.float32)


@TRANSFORMS.register_module()
class DenseO2OPhotometricDistort(BaseTransform):
    """Change brightness, contrast, saturation, hue and the order of the channels.

    Each on its own with probability ``prob``, in this order, contrast at even odds before or
    after saturation and hue. Factors are uniform. Unlike mmdet's ``PhotoMetricDistortion``
    brightness is a factor, and contrast keeps the mean grey of the image.

    Required and modified key: ``img`` (H, W, 3) uint8 in BGR order. Boxes stay.

    Args:
        prob: Probability of each of the five. Default 0.5.
        brightness: Range of the factor on the pixels. Default (0.875, 1.125).
        contrast: Range of the factor on the distance from the mean grey. Default (0.5, 1.5).
        saturation: Range of the factor on the distance from the pixel's grey. Default (0.5, 1.5).
        hue: Range of the turn of the hue, as a fraction of the circle. Default (-0.05, 0.05).

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
        self.prob = check_probability(self, 'prob', prob)
        self.brightness = check_range(self, 'brightness', brightness, lowest=0)
        self.contrast = check_range(self, 'contrast', contrast, lowest=0)
        self.saturation = check_range(self, 'saturation', saturation, lowest=0)
        self.hue = check_range(self, 'hue', hue, -0.5, 0.5)

    def transform(self, results: dict) -> dict:
        """Distort the image."""
        img = results['img']
        if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
            raise TypeError(
                f'{type(self).__name__} needs an image of three uint8 channels, got {img.dtype} of '
                f'shape {img.shape}: load with LoadImageChecked, or to_float32=False and '
                f"color_type='color'"
            )
        brightness, contrast, saturation, hue, permutation = np.random.rand(5) < self.prob
        contrast_first = np.random.rand() < 0.5
        if brightness:
            img = adjust_brightness(img, np.random.uniform(*self.brightness))
        if contrast and contrast_first:
            img = adjust_contrast(img, np.random.uniform(*self.contrast))
        if saturation:
            img = adjust_saturation(img, np.random.uniform(*self.saturation))
        if hue:
            img = adjust_hue(img, np.random.uniform(*self.hue))
        if contrast and not contrast_first:
            img = adjust_contrast(img, np.random.uniform(*self.contrast))
        if permutation:
            channels = cv2.split(img)
            img = cv2.merge([channels[channel] for channel in np.random.permutation(3)])
        results['img'] = img
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(prob={self.prob}, brightness={self.brightness}, '
            f'contrast={self.contrast}, saturation={self.saturation}, hue={self.hue})'
        )


def adjust_brightness(img: np.ndarray, factor: float) -> np.ndarray:
    """``factor`` x image, for (H, W, 3) uint8."""
    return cv2.LUT(img, _to_levels(LEVELS * factor))


def adjust_contrast(img: np.ndarray, factor: float) -> np.ndarray:
    """``factor`` x image + (1 - ``factor``) x mean grey of the image, for (H, W, 3) uint8 BGR."""
    mean = cv2.mean(cv2.cvtColor(img, cv2.COLOR_BGR2GRAY))[0]
    return cv2.LUT(img, _to_levels(factor * LEVELS + (1 - factor) * mean))


def adjust_saturation(img: np.ndarray, factor: float) -> np.ndarray:
    """``factor`` x image + (1 - ``factor``) x grey image, for (H, W, 3) uint8 BGR."""
    grey = cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(img, factor, grey, 1 - factor, 0)


def adjust_hue(img: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue by a fraction of the circle, to 1/256 of it, for (H, W, 3) uint8 BGR."""
    hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV_FULL)
    table = np.repeat(np.arange(256)[None, :, None], 3, axis=2)
    table[..., 0] = (table[..., 0] + round(turn * 256)) % 256
    return cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8)), cv2.COLOR_HSV2BGR_FULL)


def _to_levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
