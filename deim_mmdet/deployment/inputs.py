"""Reads pictures as input of deployed detectors."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile, Resize
from mmdet.registry import TRANSFORMS
from mmengine.config import Config, ConfigDict

from ..datasets.transforms import Letterbox
from ..utils.components import dataset_configs, find_component, is_component
from ..utils.errors import UserError
from .extras import is_installed

PICTURES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.npy')


def read_image(
    path: str | Path,
    size: tuple[int, int],
    letterbox: Mapping | None = None,
    loader: BaseTransform | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A picture as a deployed detector takes it.

    Args:
        path: The file.
        size: Height and width of the network's input.
        letterbox: How the picture keeps its proportions, see :func:`letterbox_of`; None stretches
            it.
        loader: The test pipeline's transform that reads images (:func:`image_loader`), for a
            detector that takes the values of the files.

    Returns:
        Image (1, 3, H, W) float32, RGB in [0, 1], and its original (width, height) (1, 2) int64.
        With a ``loader`` (1, C, H, W) in the values of the file.

    Raises:
        FileNotFoundError: There is no such file, or OpenCV can't read it as a picture.
        UnreadableImageError: The loader can't read it.
    """
    image = loader(dict(img_path=str(path)))['img'] if loader else _picture(Path(path))
    if image is None:
        reason = 'is not a picture that OpenCV can read' if Path(path).is_file() else 'is not there'
        raise FileNotFoundError(f'{path} {reason}: give the path of a picture, such as a JPEG')
    height, width = image.shape[:2]
    resize = Resize(size[::-1])
    if letterbox is not None:
        resize = Letterbox(size[::-1], letterbox.get('pad_val'))
    resized = resize(dict(img=image))['img']
    # OpenCV drops a single channel's axis.
    resized = resized.reshape(*resized.shape[:2], -1)
    if resized.shape[2] == 3:
        resized = resized[..., ::-1]
    pixels = resized.transpose(2, 0, 1)[None].astype(np.float32) / (1 if loader else 255)
    return np.ascontiguousarray(pixels), np.array([[width, height]], dtype=np.int64)


def _picture(path: Path) -> np.ndarray | None:
    """A picture (H, W, 3) uint8, BGR; None where there is none.

    ``cv2.imread`` of OpenCV 4.12 to 5.0 fails for TIFFs that it should turn by a quarter.
    """
    data = np.fromfile(path, np.uint8) if path.is_file() else np.zeros(0, np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None


def test_set(cfg: Config) -> ConfigDict:
    """Config of the test set without its wrappers; the first where they join several."""
    return next(dataset_configs(cfg.test_dataloader.dataset))


def network_size(cfg: Config) -> tuple[int, int]:
    """Height and width that the config's test pipeline resizes images to.

    Raises:
        ValueError: It doesn't resize them to one size.
    """
    for transform in test_set(cfg).pipeline:
        if is_component(TRANSFORMS, transform, Resize):
            resize = TRANSFORMS.build(transform)
            if resize.scale and not resize.keep_ratio:
                width, height = resize.scale
                return height, width
    raise UserError(
        "the config's test pipeline has no Resize to a fixed size (keep_ratio=False): give the "
        'size of the input with --size HEIGHT WIDTH'
    )


def letterbox_of(cfg: Config) -> Mapping | None:
    """Config of the test pipeline's ``Letterbox``; None where images are stretched to the input."""
    return find_component(TRANSFORMS, test_set(cfg).pipeline, Letterbox)


def image_loader(cfg: Config) -> BaseTransform:
    """The transform by which the config's test pipeline reads images."""
    loader = find_component(TRANSFORMS, test_set(cfg).pipeline, LoadImageFromFile)
    return TRANSFORMS.build(loader)


def example_image(cfg: Config) -> Path:
    """A picture of the config's test set, or else a photograph that comes with scikit-learn.

    Raises:
        FileNotFoundError: Neither is there.
    """
    dataset = test_set(cfg)
    folder = Path(dataset.get('data_root') or '') / (dataset.get('data_prefix') or {}).get(
        'img', ''
    )
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in PICTURES:
                return path
    if is_installed('sklearn'):
        import sklearn.datasets

        return Path(sklearn.datasets.__file__).parent / 'images' / 'china.jpg'
    raise FileNotFoundError(f'there are no pictures in {folder}: give one with --image')
