"""Zoom-out and IoU crop, the geometric part of SSD's augmentation (arXiv 1512.02325, 2.2)."""

from collections.abc import Sequence

from deim_mmdet.utils.arguments import check_count, check_number, check_range, described

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from .objects import clip_boxes, read_boxes, refuse_map, write_boxes


@TRANSFORMS.register_module()
class DenseO2OZoomOut(BaseTransform):
    """Put the image at a random place on a larger black canvas.

    Both sides of the canvas grow by the same factor.

    Required keys: ``img``, ``gt_bboxes``. Modified keys: ``img``, ``img_shape``, ``gt_bboxes``.

    Args:
        prob: Probability of the transform. Default 0.5.
        ratio_range: Range of the factor, at least 1, drawn uniformly. Default (1, 4).

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> pipeline = [
        ...     dict(type='LoadImageFromFile'),
        ...     dict(type='LoadAnnotations', with_bbox=True),
        ...     dict(type='DenseO2OZoomOut'),
        ...     dict(type='PackDetInputs')]
    """

    def __init__(self, prob: float = 0.5, ratio_range: Sequence[float] = (1.0, 4.0)) -> None:
        self.prob = check_number(self, 'prob', prob, 0, 1)
        self.ratio_range = check_range(self, 'ratio_range', ratio_range, lowest=1)

    def transform(self, results: dict) -> dict:
        """Zoom out with probability ``prob``."""
        refuse_map(results, self)
        boxes = read_boxes(results, self)
        if np.random.rand() >= self.prob:
            return results
        img = results['img']
        height, width = img.shape[:2]
        ratio = np.random.uniform(*self.ratio_range)
        canvas = np.zeros((int(height * ratio), int(width * ratio), *img.shape[2:]), img.dtype)
        left = np.random.randint(canvas.shape[1] - width + 1)
        top = np.random.randint(canvas.shape[0] - height + 1)
        canvas[top : top + height, left : left + width] = img
        results['img'] = canvas
        results['img_shape'] = canvas.shape[:2]
        write_boxes(results, boxes + np.array([left, top, left, top], dtype=np.float32))
        return results

    __repr__ = described


@TRANSFORMS.register_module()
class DenseO2OIoUCrop(BaseTransform):
    """Cut out a window that holds the centre of an object and overlaps one enough.

    First an option is drawn, all with the same probability: no crop, or one of the minimum IoUs.
    Then up to ``trials`` windows are drawn, until an object has its centre inside and at least the
    minimum IoU with the window. Where no window is found, another option is drawn. Objects with
    their centre outside are dropped, the others are cut at the border. Objects flagged to be
    ignored don't count in the search. An image without objects stays as it is.

    Required keys: ``img``, ``gt_bboxes``. Modified keys: ``img``, ``img_shape``, ``gt_bboxes``,
    and ``gt_bboxes_labels``, ``gt_ignore_flags`` and ``gt_instances_ids`` where present.

    Args:
        prob: Probability of the transform (which may still draw "no crop"). Default 0.8.
        min_ious: The minimum IoUs. Default (0, 0.1, 0.3, 0.5, 0.7, 0.9).
        scale_range: Range of the window's sides as fractions of the image's, each drawn on its
            own. Default (0.3, 1).
        aspect_range: Allowed width / height of the window. Default (0.5, 2).
        trials: Windows per option. Default 40.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> pipeline = [
        ...     dict(type='LoadImageFromFile'),
        ...     dict(type='LoadAnnotations', with_bbox=True),
        ...     dict(type='DenseO2OIoUCrop'),
        ...     dict(type='PackDetInputs')]
    """

    def __init__(
        self,
        prob: float = 0.8,
        min_ious: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        scale_range: Sequence[float] = (0.3, 1.0),
        aspect_range: Sequence[float] = (0.5, 2.0),
        trials: int = 40,
    ) -> None:
        self.prob = check_number(self, 'prob', prob, 0, 1)
        self.min_ious = tuple(check_number(self, 'min_ious', iou, 0, 1) for iou in min_ious)
        self.scale_range = check_range(self, 'scale_range', scale_range, 0, 1)
        self.aspect_range = check_range(self, 'aspect_range', aspect_range, lowest=0)
        self.trials = check_count(self, 'trials', trials)

    def transform(self, results: dict) -> dict:
        """Crop with probability ``prob``."""
        refuse_map(results, self)
        boxes = read_boxes(results, self)
        if np.random.rand() >= self.prob:
            return results
        ignored = results.get('gt_ignore_flags', np.zeros(len(boxes), dtype=bool)).astype(bool)
        window = self._draw_window(*results['img'].shape[:2], boxes[~ignored])
        if window is None:
            return results
        left, top, right, bottom = window
        results['img'] = results['img'][top:bottom, left:right]
        results['img_shape'] = results['img'].shape[:2]
        keep = centres_inside(boxes, window[None])[0]
        shifted = boxes - np.array([left, top, left, top], dtype=np.float32)
        write_boxes(results, clip_boxes(shifted, bottom - top, right - left), keep)
        return results

    def _draw_window(self, height: int, width: int, boxes: np.ndarray) -> np.ndarray | None:
        """Window (4,) x1, y1, x2, y2 in whole pixels, or None for no crop."""
        if len(boxes) == 0:
            return None
        while True:
            option = np.random.randint(len(self.min_ious) + 1)
            if option == len(self.min_ious):
                return None
            windows = self._draw_windows(height, width)
            inside = centres_inside(boxes, windows)
            reached = box_ious(windows, boxes) >= self.min_ious[option]
            accepted = np.flatnonzero((inside & reached).any(axis=1))
            if len(accepted):
                return windows[accepted[0]]

    def _draw_windows(self, height: int, width: int) -> np.ndarray:
        """Windows (T, 4) of an option's trials that have an allowed shape; T <= ``trials``."""
        image_size = np.array([width, height])
        size = (np.random.uniform(*self.scale_range, (self.trials, 2)) * image_size).astype(int)
        corner = (np.random.rand(self.trials, 2) * (image_size - size)).astype(int)
        aspect = size[:, 0] / np.maximum(size[:, 1], 1)
        fit = (size > 0).all(axis=1)
        fit &= (self.aspect_range[0] <= aspect) & (aspect <= self.aspect_range[1])
        return np.concatenate([corner, corner + size], axis=1)[fit]

    __repr__ = described


def centres_inside(boxes: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """(T, N) bool: whether the centre of box n (N, 4) is strictly inside window t (T, 4)."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((windows[:, None, :2] < centres) & (centres < windows[:, None, 2:])).all(axis=2)


def box_ious(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(T, N) intersection over union of windows (T, 4) and boxes (N, 4)."""
    overlap = np.minimum(windows[:, None, 2:], boxes[:, 2:])
    overlap = (overlap - np.maximum(windows[:, None, :2], boxes[:, :2])).clip(min=0).prod(axis=2)
    window_area = (windows[:, 2:] - windows[:, :2]).prod(axis=1)
    box_area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return overlap / (window_area[:, None] + box_area - overlap)
