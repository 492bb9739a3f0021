"""Detect objects by an exported model: a picture or a video in, the same with boxes out.

    python tools/detect.py model.onnx picture.jpg --out detected.jpg
    python tools/detect.py model.xml video.mp4 --out detected.mp4 [--threshold 0.4]

Needs numpy, OpenCV and ONNX Runtime (.onnx) or OpenVINO (.xml), neither torch nor this package:
copy it where the model goes.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.npy')
INPUTS = ['images', 'orig_target_sizes']
# From images (1, C, H, W) and their original (width, height) (1, 2) to labels, boxes and scores.
Detect = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


class Model(NamedTuple):
    """A model; channels, height and width of its input; and what its file says of it."""

    detect: Detect
    shape: tuple[int, int, int]
    metadata: dict[str, str]


def load(path: Path) -> Model:
    """The model in the file at ``path``.

    Raises:
        ValueError: Its inputs are those of another model.
    """
    if path.suffix == '.xml':
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        shape = [side.get_length() for side in model.input('images').partial_shape[1:]]
        keys = [['framework', key] for key in ('classes', 'letterbox', 'padding', 'values')]
        metadata = {
            key[1]: str(model.get_rt_info(key).value) for key in keys if model.has_rt_info(key)
        }
        # OpenVINO is faster where it knows the size of the batch.
        model.reshape({'images': [1, *shape], 'orig_target_sizes': [1, 2]})
        compiled = core.compile_model(model, 'CPU', {'PERFORMANCE_HINT': 'LATENCY'})
        return Model(lambda *inputs: list(compiled(inputs).values()), tuple(shape), metadata)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    names = [each.name for each in session.get_inputs()]
    if names != INPUTS:
        raise ValueError(f'its inputs are {names}, not {INPUTS}')
    return Model(
        lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True))),
        tuple(session.get_inputs()[0].shape[1:]),
        session.get_modelmeta().custom_metadata_map,
    )


def read(path: Path, model: Model) -> np.ndarray | None:
    """A file as an image (H, W, C), BGR where it has three channels; None if it isn't one.

    For a model that takes the values of files this may be an array or a TIFF with several pages.
    A picture is turned by its EXIF orientation, but not a PNG with four channels.
    """
    channels = model.shape[0]
    if path.suffix == '.npy':
        image = np.load(path)
        if image.ndim == 3 and image.shape[0] == channels != image.shape[2]:
            image = image.transpose(1, 2, 0)
        kept = image.dtype in (np.uint8, np.uint16, np.int16, np.float32)
        return np.dstack([image if kept else image.astype(np.float32)])
    if channels == 1:
        image = decode(path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
        return None if image is None else image[..., None]
    if 'values' not in model.metadata:
        return decode(path, cv2.IMREAD_COLOR)
    pages = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)[1]
    if not pages:
        return None
    if len(pages) == 1 and pages[0].shape[2:] == (3,):
        # Unlike IMREAD_UNCHANGED, this turns it by its EXIF orientation.
        return decode(path, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    # OpenCV gives the first three of four channels in reverse.
    is_bgra = len(pages) == 1 and pages[0].shape[2:] == (4,)
    return pages[0][..., [2, 1, 0, 3]] if is_bgra else np.dstack(pages)


def decode(path: Path, flags: int) -> np.ndarray | None:
    """A picture; None if the file isn't one.

    ``cv2.imread`` of OpenCV 4.12 to 5.0 fails for TIFFs that it should turn by a quarter.
    """
    data = np.fromfile(path, np.uint8)
    return cv2.imdecode(data, flags) if data.size else None


def to_input(image: np.ndarray, model: Model) -> np.ndarray:
    """An image (H, W, C) as input (1, C, height, width); three channels become RGB."""
    channels, height, width = model.shape
    resized = (width, height)
    if 'letterbox' in model.metadata:
        factor = min(height / image.shape[0], width / image.shape[1])
        # A very long image keeps a line of pixels.
        resized = tuple(max(int(side * factor + 0.5), 1) for side in image.shape[1::-1])
    padding = float(model.metadata.get('padding', 114 if image.dtype == np.uint8 else 0))
    padded = np.full((height, width, channels), padding, image.dtype)
    # OpenCV drops the axis of a single channel.
    padded[: resized[1], : resized[0]] = np.dstack([cv2.resize(image, resized)])
    if channels == 3:
        padded = padded[..., ::-1]
    planes = np.ascontiguousarray(padded.transpose(2, 0, 1)[None], np.float32)
    return planes if 'values' in model.metadata else planes / 255


def to_picture(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) as one to look at, (H, W, 3) uint8; of more channels the first three."""
    channels = image.shape[2]
    shown = image if channels == 3 else image[..., 2::-1] if channels > 3 else image[..., :1]
    if shown.dtype != np.uint8:
        low, high = shown.min(), shown.max()
        shown = (shown.astype(np.float32) - low) * (255 / max(high - low, 1e-9))
    # OpenCV draws only on arrays whose channels lie side by side.
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)).astype(np.uint8))


def draw(image: np.ndarray, model: Model, threshold: float) -> tuple[np.ndarray, int]:
    """Detect objects in an image.

    Args:
        image: (H, W, C), as :func:`read` gives it.
        model: The model.
        threshold: Least score that is drawn, in [0, 1].

    Returns:
        A picture (H, W, 3) uint8, BGR, with the boxes, and the number of objects.

    Raises:
        SystemExit: The image has another number of channels than the model takes.
    """
    if image.shape[2] != model.shape[0]:
        raise SystemExit(
            f'the images have {image.shape[2]} channels, and the model takes {model.shape[0]}: '
            'give other images or another model'
        )
    classes = json.loads(model.metadata.get('classes', '[]'))
    size = np.array([[image.shape[1], image.shape[0]]], np.int64)
    labels, boxes, scores = (output[0] for output in model.detect(to_input(image, model), size))
    picture, shown = to_picture(image), scores >= threshold
    for label, box, score in zip(labels[shown], boxes[shown], scores[shown], strict=True):
        left, top, right, bottom = box.round().astype(int).tolist()
        colour = cv2.cvtColor(np.uint8([[[label * 47 % 180, 220, 255]]]), cv2.COLOR_HSV2BGR)[0, 0]
        cv2.rectangle(picture, (left, top), (right, bottom), colour.tolist(), 2)
        text = f'{classes[label] if classes else label} {score:.2f}'
        cv2.putText(picture, text, (left, max(top - 4, 10)), 0, 0.5, colour.tolist(), 1)
    return picture, int(shown.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('model', type=Path, help='.onnx file, or .xml file of OpenVINO')
    parser.add_argument('source', type=Path, help='picture, array (.npy) or video')
    parser.add_argument('--out', type=Path, required=True, help='picture or video to write')
    parser.add_argument('--threshold', type=float, default=0.4, help='least score that is shown')
    args = parser.parse_args()
    for path in (args.model, args.source):
        if not path.is_file():
            parser.error(f'there is no file {path}')
    is_picture = args.source.suffix.lower() in PICTURES
    if is_picture and not cv2.haveImageWriter(str(args.out)):
        parser.error(f'{args.out}: give it a suffix of a picture, e.g. .png')
    try:
        model = load(args.model)
    except ImportError:
        raise
    except Exception as error:  # each runtime has its own kinds of errors
        parser.error(f'{args.model} is not a model that tools/export.py wrote: {error}')
    if is_picture:
        image = read(args.source, model)
        if image is None:
            parser.error(f'{args.source} is no picture that OpenCV can read')
        picture, objects = draw(image, model, args.threshold)
        print(f'{objects} objects')
        if not cv2.imwrite(str(args.out), picture):
            parser.error(f'could not write {args.out}')
        return
    video = cv2.VideoCapture(str(args.source))
    fps, writer, frames, begin = video.get(cv2.CAP_PROP_FPS) or 25, None, 0, time.perf_counter()
    while (frame := video.read()[1]) is not None:
        if model.shape[0] == 1:
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)[..., None]
        picture, _ = draw(frame, model, args.threshold)
        if writer is None:
            fourcc = cv2.VideoWriter.fourcc(*'mp4v')
            writer = cv2.VideoWriter(str(args.out), fourcc, fps, picture.shape[1::-1])
            if not writer.isOpened():
                parser.error(f'could not write {args.out}: is there its folder, and is it .mp4?')
        writer.write(picture)
        frames += 1
        print(f'\r{frames} frames, {frames / (time.perf_counter() - begin):.1f} a second', end='')
    if writer is None:
        parser.error(f'{args.source} is no video that OpenCV can read')
    writer.release()
    print()


if __name__ == '__main__':
    main()
