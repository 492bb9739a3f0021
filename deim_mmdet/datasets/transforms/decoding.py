"""Pixels of files with any number of channels, in 8 or 16 bits or as floats."""

import io

import cv2
import mmcv
import numpy as np

from .headers import AS_STORED, TIFF_STARTS, orientations

NPY_START = b'\x93NUMPY'
# What OpenCV resizes and warps.
PIXEL_TYPES = (np.uint8, np.uint16, np.int16, np.float32)
# Orientations that undo a turn; each of the others undoes itself.
TURNS_BACK = {6: 8, 8: 6}


def decode_unchanged(
    data: bytes, backend: str = 'cv2', channels: int | None = None, turn: bool = True
) -> np.ndarray:
    """All channels of a file with their values.

    Three channels come in BGR order, as everywhere in mmdet, but those of an array as they are. Any
    other number comes in the order of the file. The pages of a TIFF are channels.

    Args:
        data: Content of an image file or of an array in numpy's format, (H, W) or (H, W, C).
        backend: Decoder of image files, see :func:`mmcv.imfrombytes`.
        channels: Number of channels that there should be. It tells an array (C, H, W).
        turn: Whether an image is turned by its EXIF orientation, as viewers show it.

    Returns:
        (H, W, C) uint8, uint16, int16 or float32; other numbers become float32.

    Raises:
        ValueError: There is no image in the file, its pages have several sizes, or a number of it
            is NaN or infinite.
    """
    orientation = AS_STORED
    if data.startswith(NPY_START):
        img = np.load(io.BytesIO(data), allow_pickle=False)
    elif data.startswith(TIFF_STARTS) and backend == 'cv2':
        img = _joined_pages(data, turn)
    else:
        img = mmcv.imfrombytes(data, flag='unchanged', backend=backend)
        if img is None:
            raise ValueError('not an image, or damaged')
        if backend != 'tifffile':
            img = _in_order_of_file(img)
        orientation = left_to_turn(data, backend, turn)
    if img.ndim == 3 and channels == img.shape[0] and channels != img.shape[2]:
        img = np.moveaxis(img, 0, 2)
    if img.ndim == 2:
        img = img[..., None]
    if img.ndim != 3 or 0 in img.shape or img.dtype.kind not in 'buif':
        raise ValueError(f'no image (H, W, C) of numbers, but {img.dtype} of shape {img.shape}')
    if img.dtype.kind == 'f' and not (finite := np.isfinite(img)).all():
        raise ValueError(f'{(~finite).sum()} of {img.size} numbers are NaN or infinite')
    img = turned(img, orientation)
    pixel_type = np.uint8 if img.dtype.kind == 'b' else img.dtype.newbyteorder('=')
    return np.ascontiguousarray(img, pixel_type if pixel_type in PIXEL_TYPES else np.float32)


def left_to_turn(data: bytes, backend: str, turn: bool) -> int:
    """The orientation by which to turn what mmcv decodes while it is told to turn nothing.

    OpenCV and Pillow turn a TIFF nevertheless: it is turned back unless ``turn`` asks for it.

    Args:
        data: Content of an image file.
        backend: The decoder.
        turn: Whether the image should be turned by its EXIF orientation.
    """
    is_turned = data.startswith(TIFF_STARTS) and backend != 'tifffile'
    if turn == is_turned:
        return AS_STORED
    orientation = orientations(data)[0]
    return orientation if turn else TURNS_BACK.get(orientation, orientation)


def turned(img: np.ndarray, orientation: int) -> np.ndarray:
    """An image (H, W) or (H, W, C) turned and mirrored by its EXIF orientation, 1 to 8, as a view.

    From 5 on the result is (W, H) or (W, H, C).
    """
    if orientation > 4:
        img = img.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return img[::rows, ::columns]


def _joined_pages(data: bytes, turn: bool) -> np.ndarray:
    """The pages of a TIFF, each of them one or more channels."""
    read, pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if not read:
        raise ValueError(
            'damaged, or with more than four channels in a page, which needs '
            "imdecode_backend='tifffile'"
        )
    if not turn:
        pages = [
            turned(page, TURNS_BACK.get(orientation, orientation))
            for page, orientation in zip(pages, orientations(data), strict=True)
        ]
    if len(pages) == 1:
        return _in_order_of_file(pages[0])
    if len({page.shape[:2] for page in pages}) > 1:
        raise ValueError(f'pages of several sizes: {sorted({page.shape[:2] for page in pages})}')
    # Pages of several channels are rare: those of three are BGR.
    return np.dstack(
        [page[..., ::-1] if page.shape[2:] == (3,) else _in_order_of_file(page) for page in pages]
    )


def _in_order_of_file(img: np.ndarray) -> np.ndarray:
    """What a decoder gives, with the four channels in the file's order instead of BGRA."""
    return img[..., [2, 1, 0, 3]] if img.ndim == 3 and img.shape[2] == 4 else img
