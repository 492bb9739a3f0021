"""Reading of images, with one clear error for each way in which a file can be bad."""

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine import fileio

JPEG_START = b'\xff\xd8'
JPEG_SCAN = b'\xff\xda'
JPEG_END = b'\xff\xd9'
PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_END = b'IEND'


@TRANSFORMS.register_module()
class LoadImageChecked(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that refuses damaged files.

    OpenCV decodes a truncated JPEG without complaint, the missing part in grey; here a JPEG or PNG
    without its end marker is an error. Greyscale, RGBA, palette and 16-bit images become three
    channels of uint8.

    Required keys: ``img_path``. Added keys: ``img`` (H, W, 3) uint8 in BGR order, ``img_shape``,
    ``ori_shape``.

    Args:
        color_type: 'color', or 'color_ignore_orientation' where the annotations were made on
            pictures that were not turned by their EXIF orientation. Default 'color'.
        imdecode_backend: Decoder, see :func:`mmcv.imfrombytes`. Default 'cv2'.
        backend_args: Storage backend, see :func:`mmengine.fileio.get`. Default None.

    Raises:
        FileNotFoundError: If the file is missing or cannot be opened.
        ValueError: If it is empty, truncated or not an image.

    Example:
        >>> pipeline = [dict(type='LoadImageChecked'), dict(type='LoadAnnotations', with_bbox=True)]
    """

    def __init__(
        self,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        backend_args: dict | None = None,
    ) -> None:
        if color_type not in ('color', 'color_ignore_orientation'):
            raise ValueError(
                f"{type(self).__name__}: color_type must be 'color' or "
                f"'color_ignore_orientation' (three channels), got {color_type!r}"
            )
        super().__init__(
            color_type=color_type, imdecode_backend=imdecode_backend, backend_args=backend_args
        )

    def transform(self, results: dict) -> dict:
        """Read and decode ``results['img_path']``."""
        img = self._read(results['img_path'])
        results['img'] = img
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        return results

    def _read(self, path: str) -> np.ndarray:
        remedy = 'Restore the file, or remove the image from the annotation file.'
        try:
            data = fileio.get(path, backend_args=self.backend_args)
        except OSError as error:
            raise FileNotFoundError(
                f'Cannot open image {path} ({error.strerror or error}). '
                f'Check data_root and data_prefix. {remedy}'
            ) from error
        if not data:
            raise ValueError(f'Image {path} is empty (0 bytes). {remedy}')
        if is_truncated(data):
            raise ValueError(
                f'Image {path} is truncated ({len(data)} bytes, without the end marker). {remedy}'
            )
        try:
            img = mmcv.imfrombytes(data, flag=self.color_type, backend=self.imdecode_backend)
        except Exception as error:  # each decoder has its own kinds of errors
            raise ValueError(f'Image {path} cannot be decoded ({error}). {remedy}') from error
        if img is None:
            raise ValueError(f'Image {path} cannot be decoded: not an image, or damaged. {remedy}')
        return img

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(color_type='{self.color_type}', "
            f"imdecode_backend='{self.imdecode_backend}', backend_args={self.backend_args})"
        )


def is_truncated(data: bytes) -> bool:
    """Whether an encoded JPEG or PNG lacks its end marker; False for other formats.

    Bytes behind the end marker, as some cameras write them, are no truncation. An end marker
    before the start of the scan is that of an embedded thumbnail.
    """
    if data.startswith(JPEG_START):
        return data.rfind(JPEG_END) < _jpeg_scan_start(data)
    if data.startswith(PNG_START):
        return data.rfind(PNG_END) < 0
    return False


def _jpeg_scan_start(data: bytes) -> int:
    """Offset of the first scan of a JPEG: walks the segments, which may hold any bytes."""
    offset = len(JPEG_START)
    while data[offset : offset + 2] != JPEG_SCAN:
        if offset + 4 > len(data):
            return len(data)
        length = int.from_bytes(data[offset + 2 : offset + 4], 'big')
        if data[offset] != 0xFF or length < 2:
            # No well-formed chain of segments: any end marker will do.
            return 0
        offset += 2 + length
    return offset
