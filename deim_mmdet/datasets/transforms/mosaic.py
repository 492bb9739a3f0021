"""Mosaic of Dense O2O: four images in one, hence about four times as many objects."""

import logging
from collections.abc import Sequence, Sized

from deim_mmdet.utils.arguments import check_count, check_number, check_range, described

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine.logging import print_log

from ...utils.errors import UserError
from .objects import (
    BOX_COMPANIONS,
    clip_boxes,
    large_enough,
    read_boxes,
    refuse_map,
    write_boxes,
)

# (row, column) of the quadrant of each image.
QUADRANTS = ((0, 0), (0, 1), (1, 0), (1, 1))

# Longest side of a tile over ``tile_size``; it bounds the memory of the canvas.
MAX_ELONGATION = 8


@TRANSFORMS.register_module()
class DenseO2OMosaic(BaseTransform):
    """Mosaic with one affine map (DEIM, section 3.1).

    Four images are resized to the same shorter side. They are put at the top left of the four
    quadrants of a black canvas, the sample itself first. The canvas has twice the largest width and
    twice the largest height of the four. It is then turned, scaled and shifted about its centre,
    and keeps its size. A box becomes the upright hull of its turned corners, cut at the border.
    Objects under one pixel are dropped. Unlike in mmdet's ``Mosaic``, the canvas has no fixed size
    and no random centre.

    Pixels are touched only twice. Each image is resized once, to the resolution at which the map
    shows it, at most that of its tile. Then the map takes the canvas to the size of the result.

    The tile of an image more than eight times as long as wide has a longer side of eight times
    ``tile_size``, so that no canvas fills the memory.

    ``mix_results`` must hold the three other samples, loaded. mmdet's ``MultiImageMixDataset`` puts
    them there by :meth:`get_indexes`.

    Required keys: ``img``, ``gt_bboxes``, ``mix_results``. Modified keys: ``img``, ``img_shape``,
    ``gt_bboxes``, and ``gt_bboxes_labels`` and ``gt_ignore_flags`` where present.

    Args:
        tile_size: Shorter side of each of the four images, in pixels. Default 320, half the
            network's input in the published recipes.
        rotation: Largest turn in degrees, either way. Default 10.
        translation: Largest shift as a fraction of the canvas' width and height. Default 0.1.
        scale_range: Range of the map's scale. Default (0.5, 1.5).
        scale: Size (width, height) of the result in pixels, as if a ``Resize`` with
            ``keep_ratio=False`` followed. Default None: the size of the canvas.
        cache_size: Number of recent samples of a worker that partners, the other samples, are drawn
            from. With a cache a mosaic loads one new partner instead of three, but samples depend
            on each other. Default None, as in the published recipes: no cache.

    Raises:
        ValueError: An argument is out of range. Or ``mix_results`` doesn't hold three
            samples, as where no wrapper draws the partners.

    Example:
        >>> train_dataset = dict(
        ...     type='MultiImageMixDataset',
        ...     dataset=dict(type='CocoDataset', ..., pipeline=[
        ...         dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]),
        ...     pipeline=[dict(type='DenseO2OMosaic'), dict(type='PackDetInputs')])
    """

    partners = 3
    # Whether this process has named an elongated image.
    _warned = False

    def __init__(
        self,
        tile_size: int = 320,
        rotation: float = 10.0,
        translation: float = 0.1,
        scale_range: Sequence[float] = (0.5, 1.5),
        scale: Sequence[int] | None = None,
        cache_size: int | None = None,
    ) -> None:
        self.tile_size = check_count(self, 'tile_size', tile_size)
        self.rotation = check_number(self, 'rotation', rotation, 0, 180)
        self.translation = check_number(self, 'translation', translation, 0, 1)
        self.scale_range = check_range(self, 'scale_range', scale_range, lowest=1e-3)
        self.scale = scale if scale is None else tuple(scale)
        for side in self.scale or ():
            check_count(self, 'scale', side)
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
        refuse_map(results, self)
        others = list(results.get('mix_results', []))
        if self.cache_size and others:
            others = self._with_cached(results, others)
        if len(others) != self.partners:
            raise UserError(
                f'{type(self).__name__} needs {self.partners} other samples in mix_results, got '
                f'{len(others)}: wrap the dataset in MultiImageMixDataset, with this transform in '
                'its pipeline'
            )
        samples = [results, *others]
        self._warn_of_elongated(samples)
        shapes = [shape_of_tile(sample['img'], self.tile_size) for sample in samples]
        quadrant = tuple(max(shape[side] for shape in shapes) for side in (0, 1))
        matrix = self._draw_affine(2 * quadrant[0], 2 * quadrant[1])
        self._join_objects(results, samples, shapes, quadrant, matrix)
        results['img'] = self._draw([s['img'] for s in samples], shapes, quadrant, matrix)
        results['img_shape'] = results['img'].shape[:2]
        return results

    def _warn_of_elongated(self, samples: Sequence[dict]) -> None:
        """Name the first image of this process whose tile must be smaller than others."""
        elongated = [s for s in samples if is_elongated(s['img'], self.tile_size)]
        if elongated and not DenseO2OMosaic._warned:
            DenseO2OMosaic._warned = True
            height, width = elongated[0]['img'].shape[:2]
            print_log(
                f'{type(self).__name__}: {elongated[0].get("img_path", "an image")} has {width} x '
                f'{height} pixels; images more than {MAX_ELONGATION} times as long as wide are '
                'shrunk further than others in mosaics, to bound their memory, and small objects '
                'may vanish. Cut such images into pieces. This is said once.',
                logger='current',
                level=logging.WARNING,
            )

    def _join_objects(
        self,
        results: dict,
        samples: Sequence[dict],
        shapes: Sequence[tuple[int, int]],
        quadrant: tuple[int, int],
        matrix: np.ndarray,
    ) -> None:
        """Put the objects of all ``samples`` in ``results``, mapped, cut, and scaled to the result.

        ``shapes`` of the tiles and of a ``quadrant`` are (height, width) on the canvas.
        """
        canvas = (2 * quadrant[0], 2 * quadrant[1])
        boxes = []
        for sample, shape, corner in zip(samples, shapes, QUADRANTS, strict=True):
            sides = sample['img'].shape[:2]
            factor = np.array([shape[1] / sides[1], shape[0] / sides[0]] * 2)
            offset = np.array([corner[1] * quadrant[1], corner[0] * quadrant[0]] * 2)
            boxes.append(clip_boxes(read_boxes(sample, self), *sides) * factor + offset)
        for key in BOX_COMPANIONS:
            if key in results:
                results[key] = np.concatenate([sample[key] for sample in samples])
        moved = clip_boxes(turned_hulls(np.concatenate(boxes), matrix), *canvas)
        factor = np.array(self._zoom(canvas) * 2)
        write_boxes(results, moved * factor, large_enough(moved, 1))

    def _draw(
        self,
        images: Sequence[np.ndarray],
        shapes: Sequence[tuple[int, int]],
        quadrant: tuple[int, int],
        matrix: np.ndarray,
    ) -> np.ndarray:
        """The mosaic of four images under the affine map (2, 3) of the canvas."""
        zoom = np.array(self._zoom((2 * quadrant[0], 2 * quadrant[1])))
        matrix = matrix * zoom[:, None]
        # How much smaller the map shows each axis of the canvas. Where it enlarges, the tiles keep
        # their resolution, as in the published recipes.
        shrink = np.minimum(np.linalg.norm(matrix[:, :2], axis=0), 1)
        height, width = np.maximum(np.rint(quadrant * shrink[::-1]), 1).astype(int)
        canvas = np.zeros((2 * height, 2 * width, *images[0].shape[2:]), images[0].dtype)
        drawn = np.array([width / quadrant[1], height / quadrant[0]])
        for image, shape, corner in zip(images, shapes, QUADRANTS, strict=True):
            sides = np.maximum(np.rint(shape * drawn[::-1]), 1).astype(int)
            top, left = corner[0] * height, corner[1] * width
            resize(image, canvas[top : top + sides[0], left : left + sides[1]])
        matrix[:, :2] /= drawn
        size = self.scale or (2 * quadrant[1], 2 * quadrant[0])
        return warp(canvas, matrix, size)

    def _zoom(self, canvas: tuple[int, int]) -> tuple[float, float]:
        """Factors (x, y) from a canvas (height, width) to the result."""
        width, height = self.scale or (canvas[1], canvas[0])
        return width / canvas[1], height / canvas[0]

    def _with_cached(self, results: dict, others: list[dict]) -> list[dict]:
        """Fill ``others`` up from the cache, which then takes in what was loaded."""
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

    __repr__ = described


def is_elongated(img: np.ndarray, size: int) -> bool:
    """Whether an image (H, W, C) is too long for a tile whose shorter side has ``size`` pixels."""
    short, long = sorted(img.shape[:2])
    return size * long // short > MAX_ELONGATION * size


def shape_of_tile(img: np.ndarray, size: int) -> tuple[int, int]:
    """(height, width) of an image (H, W, C) once its shorter side has ``size`` pixels.

    That of an elongated image, once its longer side has as many as a tile may have.
    """
    height, width = img.shape[:2]
    short, long = sorted((height, width))
    if is_elongated(img, size):
        sides = max(round(MAX_ELONGATION * size * short / long), 1), MAX_ELONGATION * size
    else:
        sides = size, size * long // short
    return sides if height <= width else sides[::-1]


def resize(img: np.ndarray, out: np.ndarray) -> None:
    """Resize an image (H, W, C) into ``out`` (h, w, C), which may be a part of a larger one."""
    height, width = out.shape[:2]
    # Bilinear interpolation skips source pixels once the image shrinks to less than half.
    while img.shape[0] >= 2 * height and img.shape[1] >= 2 * width:
        half = (max(img.shape[1] // 2, width), max(img.shape[0] // 2, height))
        img = cv2.resize(img, half, interpolation=cv2.INTER_AREA)
    cv2.resize(img, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)


def warp(img: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Image (H, W, C) under the affine map (2, 3) of continuous coordinates, black outside.

    It takes the nearest pixel, as the published recipes do. OpenCV's coordinates count from pixel
    centres, half a pixel off the continuous ones. ``size`` of the result is (width, height).
    """
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    return cv2.warpAffine(img, centred, size, flags=cv2.INTER_NEAREST)


def turned_hulls(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Upright hulls (N, 4) of the corners of boxes (N, 4) under the affine map (2, 3)."""
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
