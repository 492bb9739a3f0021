"""The objects of a sample: boxes with the labels and flags that belong to them."""

from deim_mmdet.utils.arguments import check_number, described

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes

# Everything that has one entry per box.
BOX_COMPANIONS = ('gt_bboxes_labels', 'gt_ignore_flags', 'gt_instances_ids')


def read_boxes(results: dict, reader: object) -> np.ndarray:
    """Boxes of a sample as a new array.

    Args:
        results: The sample; ``gt_bboxes`` are mmdet's ``HorizontalBoxes`` or an array.
        reader: The transform that asks, for the message.

    Returns:
        (N, 4) float32, x1, y1, x2, y2 in pixels.

    Raises:
        KeyError: If the sample has no ``gt_bboxes``.
        NotImplementedError: If it has masks, which would no longer fit its boxes.
        TypeError: If its boxes are of another kind, e.g. rotated.
    """
    name = type(reader).__name__
    if 'gt_masks' in results:
        raise NotImplementedError(
            f'{name} does not transform masks: load the annotations with with_mask=False'
        )
    if 'gt_bboxes' not in results:
        raise KeyError(
            f'{name} needs gt_bboxes: put LoadAnnotations(with_bbox=True) before it in the pipeline'
        )
    boxes = results['gt_bboxes']
    if isinstance(boxes, HorizontalBoxes):
        boxes = boxes.tensor.numpy()
    elif not isinstance(boxes, np.ndarray):
        raise TypeError(
            f'{name} needs horizontal boxes (HorizontalBoxes or an array), '
            f'got {type(boxes).__name__}'
        )
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)


def refuse_map(results: dict, mover: object) -> None:
    """Refuse a sample with a semantic map, which wouldn't follow the pixels.

    Args:
        results: The sample.
        mover: The transform that moves pixels.

    Raises:
        NotImplementedError: If it has one.
    """
    if 'gt_seg_map' in results:
        raise NotImplementedError(
            f'{type(mover).__name__} does not transform semantic maps: load the annotations with '
            'with_seg=False'
        )


def write_boxes(results: dict, boxes: np.ndarray, keep: np.ndarray | None = None) -> None:
    """Put boxes back in the kind that the sample has, and drop objects.

    Args:
        results: The sample, changed in place.
        boxes: (N, 4) x1, y1, x2, y2 in pixels.
        keep: (N,) bool; objects to keep, with their labels and flags. All when None.
    """
    if keep is not None:
        boxes = boxes[keep]
        for key in BOX_COMPANIONS:
            if key in results:
                results[key] = results[key][keep]
    boxes = boxes.astype(np.float32, copy=False)
    if isinstance(results['gt_bboxes'], HorizontalBoxes):
        boxes = HorizontalBoxes(torch.from_numpy(boxes), clone=False)
    results['gt_bboxes'] = boxes


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes (N, 4) cut at the border of an image of ``height`` x ``width`` pixels."""
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


def large_enough(boxes: np.ndarray, min_size: float) -> np.ndarray:
    """(N,) bool: which boxes (N, 4) have both sides of at least ``min_size`` pixels."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= min_size).all(axis=1)


@TRANSFORMS.register_module()
class DropTinyBoxes(BaseTransform):
    """Cut boxes at the image border and drop the objects that are then under ``min_size``.

    The published recipes do so after the geometric transforms and once more after the resize to
    the network's input. An image may be left without objects.

    Required and modified keys: ``img`` (read), ``gt_bboxes``, and ``gt_bboxes_labels``,
    ``gt_ignore_flags`` and ``gt_instances_ids`` where present.

    Args:
        min_size: Least width and height in pixels, not negative. Default 1.

    Raises:
        ValueError: ``min_size`` is no such number.

    Example:
        >>> pipeline = [..., dict(type='Resize', scale=(640, 640)), dict(type='DropTinyBoxes')]
    """

    def __init__(self, min_size: float = 1.0) -> None:
        self.min_size = check_number(self, 'min_size', min_size, 0, float('inf'))

    def transform(self, results: dict) -> dict:
        """Clip and drop; the image stays."""
        boxes = clip_boxes(read_boxes(results, self), *results['img'].shape[:2])
        write_boxes(results, boxes, large_enough(boxes, self.min_size))
        return results

    __repr__ = described
