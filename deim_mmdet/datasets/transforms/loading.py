"""Reading of images, with one clear error for each way in which a file can be bad."""

import logging

from deim_mmdet.utils.arguments import described

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine import fileio
from mmengine.logging import print_log

from ...utils.errors import UserError
from ..annotated_size import box_factors, scale_instances, size_warning
from .decoding import decode_unchanged, left_to_turn, turned
from .headers import MAX_PIXELS, is_truncated, jpeg_shape, oversize

COLOR_TYPES = (
    *('color', 'color_ignore_orientation'),
    *('grayscale', 'grayscale_ignore_orientation'),
    *('unchanged', 'unchanged_ignore_orientation'),
)
REDUCED_FLAGS = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
REMEDY = (
    'Restore the file, or remove the image from the annotation file (in training, DenseO2ODataset '
    'with skip_unreadable=True goes on without it).'
)


class UnreadableImageError(ValueError):
    """An image file that is empty, truncated, too large or not an image."""


class MissingImageError(UnreadableImageError, FileNotFoundError):
    """An image file that is missing or cannot be opened."""


@TRANSFORMS.register_module()
class LoadImageChecked(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that refuses damaged files.

    OpenCV decodes a truncated JPEG without complaint, the missing part in grey. Here a JPEG or PNG
    without its end marker is an error. So is an image of more than 179 million pixels, before it is
    decoded. Greyscale, RGBA, palette and 16-bit images become three channels of uint8, unless
    ``color_type`` says otherwise. Where an image has another size than annotated (``height`` and
    ``width`` of the sample), its boxes are scaled to it. A process warns of the first such image.

    A sample may say in ``shorter_side`` how many pixels of its image are needed, as for a small
    tile of a mosaic. A JPEG that has at least twice as many is decoded at 1/2, 1/4 or 1/8 of its
    size, which takes less time than to shrink it later. Its annotated boxes (``instances``) shrink
    with it, so this transform must come before ``LoadAnnotations``.

    Required keys: ``img_path``. Optional key: ``shorter_side``, in pixels. Added keys: ``img``
    (H, W, 3) uint8 in BGR order or (H, W, C), ``img_shape``, ``ori_shape`` (that of the file).
    Modified keys: ``instances`` of an image that is decoded at another size than annotated, and
    ``height`` and ``width`` where the file has another.

    Args:
        color_type: 'color', 'grayscale' or 'unchanged'. 'unchanged' keeps all channels and 16 bits,
            and also reads arrays (``.npy``) and all pages of a TIFF, see
            :func:`~deim_mmdet.datasets.transforms.decoding.decode_unchanged`. The decoders 'cv2'
            and 'pillow' turn images by their EXIF orientation; with '_ignore_orientation' behind
            one of these names they don't, for images that were annotated so. Default 'color'.
        imdecode_backend: Decoder, see :func:`mmcv.imfrombytes`. Default 'cv2'.
        backend_args: Storage backend, see :func:`mmengine.fileio.get`. Default None.
        channels: Number of channels that every image must have. Default None: any.

    Raises:
        MissingImageError: If the file is missing or cannot be opened; a ``FileNotFoundError``.
        UnreadableImageError: If it is empty, truncated, too large, not an image, or has another
            number of channels; a ``ValueError``. ``DenseO2ODataset(skip_unreadable=True)`` goes on
            with another image.

    Example:
        >>> pipeline = [dict(type='LoadImageChecked'), dict(type='LoadAnnotations', with_bbox=True)]
    """

    def __init__(
        self,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        backend_args: dict | None = None,
        channels: int | None = None,
    ) -> None:
        if color_type not in COLOR_TYPES:
            raise UserError(
                f'{type(self).__name__}: color_type must be one of {COLOR_TYPES}, got '
                f'{color_type!r}'
            )
        super().__init__(
            color_type=color_type, imdecode_backend=imdecode_backend, backend_args=backend_args
        )
        self.channels = channels
        self._turns = not color_type.endswith('_ignore_orientation')
        self._warned = False

    def transform(self, results: dict) -> dict:
        """Read and decode ``results['img_path']``."""
        path = results['img_path']
        data = self._read(path)
        reduction = self._reduction(data, results)
        img = self._decode(data, path, reduction)
        if self.channels not in (None, img.shape[2]):
            raise UnreadableImageError(
                f'Image {path} has {img.shape[2]} channels, and the model takes {self.channels} '
                '(LoadImageChecked.channels, model.backbone.in_channels, and mean and std of '
                f'model.data_preprocessor). Is color_type={self.color_type!r} right? {REMEDY}'
            )
        results['img'] = img
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        if reduction > 1:
            # Where the EXIF orientation has turned the image, width and height are exchanged.
            shape = jpeg_shape(data)
            turned = (img.shape[0] < img.shape[1]) != (shape[0] < shape[1])
            results['ori_shape'] = shape[::-1] if turned else shape
        x, y = self._box_factors(results)
        if (x, y, reduction) != (1, 1, 1):
            scale_instances(results.get('instances', ()), x / reduction, y / reduction, path)
        if (x, y) != (1, 1):
            # ScaleInstances, should it follow, has nothing to do any more.
            results['height'], results['width'] = results['ori_shape']
        return results

    def _box_factors(self, results: dict) -> tuple[float, float]:
        """Factors from annotated to read pixels; warns of the first image where they differ."""
        read = results['ori_shape']
        annotated = results.get('height', read[0]), results.get('width', read[1])
        if annotated == read:
            return 1.0, 1.0
        if not self._warned:
            self._warned = True
            print_log(
                size_warning(results['img_path'], annotated, read, self.color_type),
                logger='current',
                level=logging.WARNING,
            )
        return box_factors(annotated, read)

    def _reduction(self, data: bytes, results: dict) -> int:
        """By how much the sides of the image may shrink while it is decoded."""
        needed = results.get('shorter_side')
        if needed is None or 'gt_bboxes' in results or self.imdecode_backend != 'cv2':
            return 1
        if not self.color_type.startswith('color'):
            return 1
        shape = jpeg_shape(data)
        if shape is None:
            return 1
        # Sides that become equal would not tell any more whether the image was turned.
        apart = [
            r for r in REDUCED_FLAGS if len({-(-side // r) for side in shape}) == len({*shape})
        ]
        return max((r for r in apart if min(shape) >= r * needed), default=1)

    def _read(self, path: str) -> bytes:
        try:
            data = fileio.get(path, backend_args=self.backend_args)
        except OSError as error:
            raise MissingImageError(
                f'Cannot open image {path} ({error.strerror or error}). '
                f'Check data_root and data_prefix. {REMEDY}'
            ) from error
        if not data:
            raise UnreadableImageError(f'Image {path} is empty (0 bytes). {REMEDY}')
        if is_truncated(data):
            raise UnreadableImageError(
                f'Image {path} is truncated ({len(data)} bytes, without the end marker). {REMEDY}'
            )
        size = oversize(data)
        if size is not None:
            raise UnreadableImageError(
                f'Image {path} is too large ({size}); at most {MAX_PIXELS} pixels are decoded. '
                f'Cut it into tiles. {REMEDY}'
            )
        return data

    def _decode(self, data: bytes, path: str, reduction: int) -> np.ndarray:
        flag = self.color_type
        if reduction > 1:
            flag = REDUCED_FLAGS[reduction]
            if not self._turns:
                flag |= cv2.IMREAD_IGNORE_ORIENTATION
        try:
            if self.color_type.startswith('unchanged'):
                return decode_unchanged(data, self.imdecode_backend, self.channels, self._turns)
            img = mmcv.imfrombytes(data, flag=flag, backend=self.imdecode_backend)
            if img is not None and not self._turns:
                orientation = left_to_turn(data, self.imdecode_backend, turn=False)
                img = np.ascontiguousarray(turned(img, orientation))
        except Exception as error:  # each decoder has its own kinds of errors
            raise UnreadableImageError(
                f'Image {path} cannot be decoded ({error}). {REMEDY}'
            ) from error
        if img is None:
            raise UnreadableImageError(
                f'Image {path} cannot be decoded: not an image, or damaged. {REMEDY}'
            )
        return img if img.ndim == 3 else img[..., None]

    __repr__ = described


@TRANSFORMS.register_module()
class ScaleInstances(BaseTransform):
    """Scale boxes to their image where that has another size than annotated.

    ``LoadImageChecked`` does so itself. This transform is for pipelines with ``LoadImageFromFile``.
    Those of evaluation have it, as ``DetInferencer`` looks for this name. It must come before
    ``LoadAnnotations``.

    Required key: ``ori_shape``. Optional keys: ``height`` and ``width``, the annotated size, and
    ``instances``, which are modified.

    Example:
        >>> pipeline = [
        ...     dict(type='LoadImageFromFile'), dict(type='ScaleInstances'),
        ...     dict(type='LoadAnnotations', with_bbox=True)]
    """

    def transform(self, results: dict) -> dict:
        """Scale ``results['instances']``."""
        read = tuple(results['ori_shape'][:2])
        annotated = results.get('height', read[0]), results.get('width', read[1])
        if annotated != read:
            factors = box_factors(annotated, read)
            scale_instances(results.get('instances', ()), *factors, results.get('img_path'))
        return results

    __repr__ = described
