"""Pictures with an EXIF orientation, made byte by byte: no library writes all of them."""

import struct
import zlib

import cv2
import numpy as np

ORIENTATION = 0x0112


def oriented_png(img: np.ndarray, orientation: int, behind_pixels: bool = False) -> bytes:
    """A PNG of an image (H, W) or (H, W, C), BGR(A), of 8 or 16 bits."""
    data = cv2.imencode('.png', img)[1].tobytes()
    exif = struct.pack('>2sHIHHHIHHI', b'MM', 42, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)
    chunk = b'eXIf' + exif
    chunk = struct.pack('>I', len(exif)) + chunk + struct.pack('>I', zlib.crc32(chunk))
    # Before the last chunk, or behind the header, which is the first one.
    place = len(data) - 12 if behind_pixels else 33
    return data[:place] + chunk + data[place:]


def oriented_tiff(img: np.ndarray, orientation: int) -> bytes:
    """A TIFF of an image (H, W) or (H, W, 3), BGR, of 8 or 16 bits."""
    planes = np.atleast_3d(img)[..., ::-1]
    height, width, channels = planes.shape
    pixels = planes.astype(planes.dtype.newbyteorder('<')).tobytes()
    pixels += bytes(len(pixels) % 2)
    bits = 8 * img.dtype.itemsize
    # Tag, type (3: 16 bits, 4: 32 bits) and value; one strip of pixels lies behind the header.
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, 1 if channels == 1 else 2),
        (273, 4, 8),
        (ORIENTATION, 3, orientation),
        (277, 3, channels),
        (278, 4, height),
        (279, 4, height * width * channels * img.dtype.itemsize),
    ]
    directory = 8 + len(pixels)
    behind = directory + 2 + 12 * len(entries) + 4
    data = struct.pack('<2sHI', b'II', 42, directory) + pixels + struct.pack('<H', len(entries))
    for tag, kind, value in entries:
        if tag == 258 and channels > 1:
            data += struct.pack('<HHII', tag, kind, channels, behind)
        else:
            data += struct.pack('<HHII', tag, kind, 1, value)
    return data + bytes(4) + struct.pack('<H', bits) * channels


WRITERS = {'png': oriented_png, 'tiff': oriented_tiff}
