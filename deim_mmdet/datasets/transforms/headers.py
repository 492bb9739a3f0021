"""What encoded images say of themselves: whether they are whole, their size, their orientation."""

import io
import warnings

from PIL import Image, TiffImagePlugin

JPEG_START = b'\xff\xd8'
JPEG_SCAN = b'\xff\xda'
# Start of frame, with width and height: 0xC0 to 0xCF without three other kinds of segment.
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
JPEG_END = b'\xff\xd9'
PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_END = b'IEND'
WEBP_START = b'RIFF'
# Of both byte orders; the last two are BigTIFF.
TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
ORIENTATION_TAG = 0x0112
AS_STORED = 1
# 0.5 GB when decoded, Pillow's limit too: a larger image has a damaged header or exhausts memory.
MAX_PIXELS = 178_956_970


def is_truncated(data: bytes) -> bool:
    """Whether an encoded JPEG or PNG lacks its end marker; False for other formats.

    Some cameras write bytes behind the end marker; that is no truncation. An end marker before the
    start of the scan belongs to an embedded thumbnail.
    """
    if data.startswith(JPEG_START):
        return data.rfind(JPEG_END) < _jpeg_header(data)[1]
    if data.startswith(PNG_START):
        return data.rfind(PNG_END) < 0
    return False


def oversize(data: bytes) -> str | None:
    """The size in an image's header where it has more than ``MAX_PIXELS``; None for others."""
    if data.startswith(JPEG_START):
        height, width = jpeg_shape(data) or (0, 0)
    elif data.startswith(PNG_START):
        width, height = (int.from_bytes(data[at : at + 4], 'big') for at in (16, 20))
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', Image.DecompressionBombWarning)
                width, height = Image.open(io.BytesIO(data)).size
        except Image.DecompressionBombError as error:
            return str(error)
        except Exception:  # what OpenCV reads, Pillow need not
            return None
    return f'{width}x{height} pixels' if width * height > MAX_PIXELS else None


def jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """(height, width) in the header of an encoded JPEG; None without one, or in other formats."""
    return _jpeg_header(data)[0] if data.startswith(JPEG_START) else None


def orientations(data: bytes) -> list[int]:
    """EXIF orientation of an encoded image, or of each page of a TIFF.

    Each is a number from 1 to 8: 1 is "as stored", also where the file says none. Formats other
    than JPEG, PNG, WebP and TIFF have none here, as OpenCV doesn't turn them.
    """
    found = [None]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            if data.startswith(TIFF_STARTS):
                found = _tiff_orientations(data)
            elif data.startswith((JPEG_START, PNG_START, WEBP_START)):
                exif = Image.Exif()
                exif.load(_png_exif(data) or Image.open(io.BytesIO(data)).info.get('exif', b''))
                found = [exif.get(ORIENTATION_TAG)]
    except Exception:  # damaged metadata need not hinder the pixels
        pass
    return [number if number in range(1, 9) else AS_STORED for number in found or [None]]


def _png_exif(data: bytes) -> bytes:
    """EXIF metadata of a PNG, which may lie behind the pixels, where Pillow looks while decoding.

    Empty where there are none, and in other formats.
    """
    offset = len(PNG_START)
    while data.startswith(PNG_START) and offset + 8 <= len(data):
        length = int.from_bytes(data[offset : offset + 4], 'big')
        if data[offset + 4 : offset + 8] == b'eXIf':
            return data[offset + 8 : offset + 8 + length]
        # A chunk has its length, its kind and a checksum, of four bytes each.
        offset += 12 + length
    return b''


def _tiff_orientations(data: bytes) -> list:
    """Orientation tags of the pages of a TIFF, whatever their pixels; None where there is none."""
    file, found, seen = io.BytesIO(data), [], set()
    is_big = data.startswith(TIFF_STARTS[2:])
    tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if is_big else 8))
    while tags.next and tags.next not in seen:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        found.append(tags.get(ORIENTATION_TAG))
    return found


def _jpeg_header(data: bytes) -> tuple[tuple[int, int] | None, int]:
    """Shape of a JPEG, and offset of its first scan, behind segments that may hold any bytes.

    The offset is the length of the data where that ends before. It is 0 where the segments form no
    chain, so that any end marker will do.
    """
    shape = None
    offset = len(JPEG_START)
    while data[offset : offset + 2] != JPEG_SCAN:
        if offset + 4 > len(data):
            return shape, len(data)
        length = int.from_bytes(data[offset + 2 : offset + 4], 'big')
        if data[offset] != 0xFF or length < 2:
            return shape, 0
        if data[offset + 1] in JPEG_FRAMES:
            height, width = data[offset + 5 : offset + 7], data[offset + 7 : offset + 9]
            shape = int.from_bytes(height, 'big'), int.from_bytes(width, 'big')
        offset += 2 + length
    return shape, offset
