"""Finds what is wrong with an image file, or unusual about it."""

import io
import warnings
from typing import NamedTuple

from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from PIL import Image

from ..datasets.annotation_problems import Finding
from ..datasets.transforms.headers import (
    AS_STORED,
    PNG_START,
    TIFF_STARTS,
    is_truncated,
    orientations,
    oversize,
)
from ..datasets.transforms.loading import LoadImageChecked

TIFF_BITS_PER_SAMPLE = 258
# Pillow's modes of grey images; "I" and "F" have 32 bits.
GREYSCALE = ('1', 'L', 'LA', 'La', 'I', 'I;16', 'I;16B', 'I;16L', 'F')
DEEP = ('I', 'I;16', 'I;16B', 'I;16L', 'F')
ALPHA = ('LA', 'La', 'PA', 'RGBA', 'RGBa')
PALETTE = ('P', 'PA')


class ImageTask(NamedTuple):
    """An image to inspect: its path, its name and (width, height) in the annotation file."""

    path: str
    name: str
    size: tuple[float, float]


def inspect_image(task: ImageTask, loader: LoadImageFromFile) -> list[Finding]:
    """Read an image as training does, and look at its kind.

    Args:
        task: The image.
        loader: Transform by which training or evaluation reads images. What it refuses would end
            the run.
    """
    path, name, size = task

    def finding(problem: str, says: str, breaks: bool = False) -> Finding:
        return Finding(problem, breaks, f'{name} ({says})' if says else name, name)

    try:
        data = fileio.get(path, backend_args=loader.backend_args)
    except OSError as error:
        return [finding('image_missing', error.strerror or str(error), breaks=True)]
    size_of_huge = oversize(data)
    if size_of_huge is not None:
        return [finding('image_huge', size_of_huge, breaks=True)]
    truncated = is_truncated(data)
    try:
        img = loader.transform({'img_path': path})['img']
    except Exception as error:  # each decoder raises its own types
        if not data:
            problem = 'image_empty'
        else:
            problem = 'image_truncated' if truncated else 'image_unreadable'
        return [finding(problem, str(error).split(path)[-1].strip(' :')[:100], breaks=True)]
    found = [finding('image_truncated', f'{len(data)} bytes')] if truncated else []
    read = img.shape[1], img.shape[0]
    if loader.color_type.startswith('color'):
        found += [finding(kind, '') for kind in _kinds(data)]
    keeps = loader.color_type.endswith('_ignore_orientation')
    if not isinstance(loader, LoadImageChecked):
        # mmcv never turns what it leaves "unchanged", and TIFFs whatever it is told.
        keeps = (keeps or loader.color_type == 'unchanged') and not data.startswith(TIFF_STARTS)
    orientation = orientations(data)[0]
    turned = orientation != AS_STORED and not keeps
    if read == tuple(size):
        if turned:
            found.append(finding('exif_turned', f'orientation {orientation}'))
    elif turned and read == (size[1], size[0]):
        found.append(finding('exif_not_annotated', f'orientation {orientation}'))
    else:
        says = f'{read[0]}x{read[1]}, in the file {size[0]}x{size[1]}'
        found.append(finding('size_differs', says))
    return found


def _kinds(data: bytes) -> list[str]:
    """Keys of ``PROBLEMS`` for unusual kinds of pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            image = Image.open(io.BytesIO(data))
    except Exception:  # Pillow can't read everything that OpenCV reads
        return []
    mode = image.mode
    bits = 8
    if data.startswith(PNG_START):
        bits = data[24]
    elif image.format == 'TIFF':
        bits = max(image.tag_v2.get(TIFF_BITS_PER_SAMPLE, (8,)))
    kinds = {
        'greyscale': mode in GREYSCALE,
        'deep': mode in DEEP or bits > 8,
        'alpha': mode in ALPHA or 'transparency' in image.info,
        'palette': mode in PALETTE,
    }
    return [kind for kind, holds in kinds.items() if holds]
