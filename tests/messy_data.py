"""A data set with every fault that is checked for, each a known number of times.

The images are made by OpenCV, Pillow or byte by byte; nothing of the package is used.
"""

import io
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIDE = 64
#: What is in the training set and does not break training, with its count.
HARMLESS = {
    'repeated_image': 1,
    'repeated_annotation_id': 2,
    'unused_category': 1,
    'unknown_image': 1,
    'unknown_category': 2,
    'box_not_finite': 3,
    'box_without_area': 3,
    'box_outside': 2,
    'box_too_thin': 1,
    'box_ignored': 1,
    'box_partly_outside': 2,
    'repeated_box': 1,
    'crowd': 1,
    'image_without_objects': 2,
    'size_differs': 1,
    'exif_turned': 2,
    'exif_not_annotated': 1,
    'greyscale': 3,
    'deep': 2,
    'alpha': 2,
    'palette': 2,
}
#: Images that stop training, with their count.
BREAKING = {
    'image_missing': 1,
    'image_empty': 1,
    'image_truncated': 2,
    'image_unreadable': 1,
    'image_huge': 2,
}


def write_messy_data(folder: Path, breaking: bool) -> Path:
    """Write images and ``all.json``; with ``breaking``, also images that stop training."""
    folder.mkdir(parents=True, exist_ok=True)
    content = dict(
        images=[],
        annotations=[],
        categories=[
            dict(id=4, name='disc'),
            dict(id=9, name='ring'),
            dict(id=11, name='never used'),
        ],
    )
    for name, data in {**_images(), **(_broken_images() if breaking else {})}.items():
        if data is not None:
            (folder / name).write_bytes(data)
        size = dict(width=SIDE, height=48)
        if name == 'exif_turned_6.jpg':
            size = dict(width=48, height=SIDE)
        elif name == 'size_differs.png':
            size = dict(width=2 * SIDE, height=96)
        content['images'].append(dict(id=len(content['images']) + 1, file_name=name, **size))
    content['images'].append(dict(content['images'][0]))
    _annotate(content)
    (folder / 'all.json').write_text(json.dumps(content))
    return folder


def _annotate(content: dict) -> None:
    ids = {image['file_name']: image['id'] for image in content['images']}

    def add(image: str | int, bbox: list, category: int = 4, **more) -> None:
        number = len(content['annotations']) + 1
        annotation = dict(
            id=number,
            image_id=ids.get(image, image),
            category_id=category,
            bbox=bbox,
            area=bbox[2] * bbox[3],
            iscrowd=0,
        )
        content['annotations'].append({**annotation, **more})

    for name in ids:
        if not name.startswith('empty'):
            add(name, [4, 6, 20, 30], category=9)
    nan, infinite = float('nan'), float('inf')
    add('plain.png', [nan, 5, 10, 10])
    add('plain.png', [5, 5, infinite, 10])
    add('plain.png', [5, 5, 10, 10], area=nan)
    add('plain.png', [5, 5, 0, 10])
    add('plain.png', [30, 5, -10, 10])
    add('plain.png', [5, 5, 10, 10], area=0)
    add('plain.png', [SIDE, 5, 10, 10])
    add('plain.png', [5, -30, 10, 30])
    add('plain.png', [5, 5, 0.5, 30])
    add('plain.png', [5, 5, 10, 30], ignore=1)
    add('plain.png', [-5, 5, 20, 20])
    add('plain.png', [40, 30, 20, 30])
    add('twice.png', [4, 6, 20, 30], category=9)
    add('plain.png', [0, 0, 64, 48], iscrowd=1)
    add(12345, [5, 5, 10, 10])
    add('plain.png', [5, 5, 10, 10], category=5)
    add('plain.png', [5, 5, 10, 10], category='disc')
    add('plain.png', [10, 10, 10, 10], id=1)
    add('plain.png', [10, 10, 20, 20], id=1)


def _photo(height: int = 48, width: int = SIDE) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4 % 256, columns * 3 % 256, (rows + columns) % 256], -1).astype(
        np.uint8
    )


def _encode(img: np.ndarray, suffix: str) -> bytes:
    done, data = cv2.imencode(suffix, img)
    assert done
    return data.tobytes()


def _pillow(mode: str, format: str, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(_photo()[..., ::-1].copy()).convert(mode)
    if mode == 'RGBA':
        image.putalpha(120)  # an opaque one would be left out
    image.save(file, format, **options)
    return file.getvalue()


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _pillow('RGB', 'JPEG', exif=exif)


def _images() -> dict[str, bytes]:
    photo = _photo()
    grey = photo[..., 0].copy()
    alpha = np.dstack([photo, grey])
    return {
        'plain.png': _encode(photo, '.png'),
        'plain.jpg': _encode(photo, '.jpg'),
        'plain.bmp': _encode(photo, '.bmp'),
        'plain.webp': _encode(photo, '.webp'),
        'twice.png': _encode(photo, '.png'),
        'empty_1.png': _encode(photo, '.png'),
        'empty_2.jpg': _encode(photo, '.jpg'),
        'size_differs.png': _encode(photo, '.png'),
        'exif_turned_6.jpg': _oriented(6),
        'exif_turned_3.jpg': _oriented(3),
        'exif_not_annotated_8.jpg': _oriented(8),
        'grey.png': _encode(grey, '.png'),
        'grey.jpg': _encode(grey, '.jpg'),
        'grey_16.png': _encode(grey.astype(np.uint16) * 257, '.png'),
        'colour_16.tif': _encode(photo.astype(np.uint16) * 257, '.tif'),
        'alpha.png': _encode(alpha, '.png'),
        'alpha.webp': _pillow('RGBA', 'WEBP', lossless=True),
        'palette.png': _pillow('P', 'PNG'),
        'palette.gif': _pillow('P', 'GIF'),
    }


def _broken_images() -> dict[str, bytes | None]:
    jpeg, png = _encode(_photo(), '.jpg'), _encode(_photo(), '.png')
    return {
        'missing.jpg': None,
        'zero.jpg': b'',
        'cut.jpg': jpeg[: len(jpeg) // 2],
        'cut.png': png[: len(png) // 2],
        'page.jpg': b'<html>404</html>',
        'huge.png': huge_png(60000, 60000),
        'huge.jpg': with_jpeg_size(jpeg, 65500, 65500),
    }


def huge_png(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header has this size, with right checksums."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * width + 1))
    start = b'\x89PNG\r\n\x1a\n'
    return start + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """A baseline JPEG with another size in its header."""
    at = data.index(b'\xff\xc0') + 5
    return data[:at] + struct.pack('>HH', height, width) + data[at + 4 :]
