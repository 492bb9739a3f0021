"""Mosaic of Dense O2O: four images in one, hence about four times as many objects."""

from collections.abc import Sequence, Sized

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from deim_mmdet.utils.arguments import check_count, check_number, check_range

from .objects import BOX_COMPANIONS, clip_boxes, large_enough, read_boxes, write_boxes


@TRANSFORMS.register_module()
class DenseO2OMosaic(BaseTransform):
    """Mosaic with one affine map (DEIM, section 3.1).

    Four images, each resized to the same shorter side, are put at the top left of the four
    quadrants of a black canvas of twice the largest width and height, the sample itself first.
    The canvas is then turned, scaled and shifted about its centre, at the same size. A box becomes
    the upright hull of its turned corners, cut at the border; objects under one pixel are dropped.
    Unlike mmdet's ``Mosaic`` the canvas has no fixed size and no random centre.

    Needs the three other samples in ``mix_results``, loaded, as mmdet's ``MultiImageMixDataset``
    gives them through :meth:`get_indexes`.

    Required keys: ``img``, ``gt_bboxes``, ``mix_results``. Modified keys: ``img``, ``img_shape``,
    ``gt_bboxes``, and ``gt_bboxes_labels`` and ``gt_ignore_flags`` where present.

    Args:
        tile_size: Shorter side of each of the four images, in pixels. Default 320, half the
            network's input in the published recipes.
        rotation: Largest turn in degrees, either way. Default 10.
        translation: Largest shift as a fraction of the canvas' width and height. Default 0.1.
        scale_range: Range of the scale. Default (0.5, 1.5).
        cache_size: Number of recent samples, of each worker, that partners are drawn from. With a
            cache a mosaic loads one new partner instead of three, at the price of samples that
            depend on each other. None, the default and the published recipes': no cache.

    Example:
        >>> train_dataset = dict(
        ...     type='MultiImageMixDataset',
        ...     dataset=dict(type='CocoDataset', ..., pipeline=[
        ...         dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]),
        ...     pipeline=[dict(type='DenseO2OMosaic'), dict(type='PackDetInputs')])
    """

    partners = 3

    def __init__(
        self,
        tile_size: int = 320,
        rotation: float = 10.0,
        translation: float = 0.1,
        scale_range: Sequence[float] = (0.5, 1.5),
        cache_size: int | None = None,
    ) -> None:
        self.tile_size = check_count(self, 'tile_size', tile_size)
        self.rotation = check_number(self, 'rotation', rotation, 0, 180)
        self.translation = check_number(self, 'translation', translation, 0, 1)
        self.scale_range = check_range(self, 'scale_range', scale_range, lowest=1e-3)
        self.cache_size = (
            cache_size if cache_size is None else check_count(self, 'cache_size', cache_size)
        )
        self._cache: list[dict] = []

    def get_indexes(self, dataset: Sized) -> list[int]:
        """Indexes of the other samples to load, drawn with replacement."""
        count = self.partners if not self._cache else 1
        return np.random.randint(len(dataset), size=count).tolist()

    def transform(self, results: dict) -> dict:
        """Make the mosaic of ``results`` and its ``mix_results``."""
        others = list(results.get('mix_results', []))
        if self.cache_size and others:
            others = self._with_cached(results, others)
        if len(others) != self.partners:
            raise ValueError(
                f'{type(self).__name__} needs {self.partners} other samples in mix_results, got '
                f'{len(others)}: wrap the dataset in MultiImageMixDataset, with this transform in '
                'its pipeline'
            )
        samples = [results, *others]
        tiles = [resize_to_shorter_side(sample['img'], self.tile_size) for sample in samples]
        height = max(tile.shape[0] for tile in tiles)
        width = max(tile.shape[1] for tile in tiles)
        canvas = np.zeros((2 * height, 2 * width, *tiles[0].shape[2:]), tiles[0].dtype)
        boxes = []
        for tile, sample, (left, top) in zip(
            tiles, samples, [(0, 0), (width, 0), (0, height), (width, height)], strict=True
        ):
            canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
            boxes.append(_boxes_on_canvas(read_boxes(sample, self), sample['img'], tile, left, top))
        for key in BOX_COMPANIONS:
            if key in results:
                results[key] = np.concatenate([sample[key] for sample in samples])

        matrix = self._draw_affine(2 * height, 2 * width)
        results['img'] = warp(canvas, matrix)
        results['img_shape'] = canvas.shape[:2]
        moved = clip_boxes(turned_hulls(np.concatenate(boxes), matrix), *canvas.shape[:2])
        write_boxes(results, moved, large_enough(moved, 1))
        return results

    def _with_cached(self, results: dict, others: list[dict]) -> list[dict]:
        """``others``, filled up from the cache, which then takes in what was loaded."""
        drawn = (
            np.random.randint(len(self._cache), size=self.partners - len(others))
            if self._cache
            else ()
        )
        filled = [*others, *(self._cache[index] for index in drawn)]
        for sample in (results, *others):
            if len(self._cache) == self.cache_size:
                self._cache.pop(np.random.randint(self.cache_size))
            keys = ('img', 'gt_bboxes', *BOX_COMPANIONS)
            self._cache.append({key: sample[key] for key in keys if key in sample})
        return filled

    def _draw_affine(self, height: int, width: int) -> np.ndarray:
        """Random affine map (2, 3) of continuous pixel coordinates about the canvas' centre."""
        angle = np.deg2rad(np.random.uniform(-self.rotation, self.rotation))
        scale = np.random.uniform(*self.scale_range)
        size = np.array([width, height])
        shift = np.random.uniform(-self.translation, self.translation, 2) * size
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        linear = np.array([[cosine, -sine], [sine, cosine]])
        centre = size / 2
        return np.column_stack([linear, centre + shift - linear @ centre])

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(tile_size={self.tile_size}, rotation={self.rotation}, '
            f'translation={self.translation}, scale_range={self.scale_range}, '
            f'cache_size={self.cache_size})'
        )


def resize_to_shorter_side(img: np.ndarray, size: int) -> np.ndarray:
    """Image (H, W, C) at the scale at which its shorter side has ``size`` pixels."""
    height, width = img.shape[:2]
    if height <= width:
        new_height, new_width = size, size * width // height
    else:
        new_height, new_width = size * height // width, size
    # Bilinear interpolation skips source pixels once the image shrinks to less than half.
    interpolation = cv2.INTER_AREA if 2 * size < min(height, width) else cv2.INTER_LINEAR
    return cv2.resize(img, (new_width, new_height), interpolation=interpolation)


def _boxes_on_canvas(
    boxes: np.ndarray, img: np.ndarray, tile: np.ndarray, left: int, top: int
) -> np.ndarray:
    """Boxes (N, 4) of ``img`` as those of its ``tile`` with the top left at (left, top)."""
    boxes = clip_boxes(boxes, *img.shape[:2])
    scale = np.array([tile.shape[1] / img.shape[1], tile.shape[0] / img.shape[0]] * 2)
    return boxes * scale + np.array([left, top] * 2)


def warp(img: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Image (H, W, C) under the affine map (2, 3) of continuous coordinates, black outside.

    Nearest pixel, as in the published recipes. OpenCV's coordinates are those of pixel centres,
    half a pixel off the continuous ones.
    """
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    return cv2.warpAffine(img, centred, img.shape[1::-1], flags=cv2.INTER_NEAREST)


def turned_hulls(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Upright hulls (N, 4) of the corners of boxes (N, 4) under the affine map (2, 3)."""
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
