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

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
Detect = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


class Model(NamedTuple):
    """A model, height and width of its input, and what its file says of it: ``classes``, …"""

    detect: Detect
    size: tuple[int, int]
    metadata: dict[str, str]


def load(path: Path) -> Model:
    """The model in the file at ``path``."""
    if path.suffix == '.xml':
        import openvino

        model = openvino.Core().compile_model(path, 'CPU', {'PERFORMANCE_HINT': 'LATENCY'})
        height, width = (side.get_length() for side in model.input('images').partial_shape[2:])
        return Model(lambda *inputs: list(model(inputs).values()), (height, width), {})
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    names = [each.name for each in session.get_inputs()]
    height, width = session.get_inputs()[0].shape[2:]
    return Model(
        lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True))),
        (height, width),
        session.get_modelmeta().custom_metadata_map,
    )


def to_input(image: np.ndarray, size: tuple[int, int], letterbox: bool) -> np.ndarray:
    """An image (H, W, 3), BGR as OpenCV reads it, as input (1, 3, height, width), RGB in [0, 1]."""
    height, width = size
    resized = (width, height)
    if letterbox:
        factor = min(height / image.shape[0], width / image.shape[1])
        resized = tuple(int(side * factor + 0.5) for side in image.shape[1::-1])
    padded = np.full((height, width, 3), 114, np.uint8)
    padded[: resized[1], : resized[0]] = cv2.resize(image, resized)
    return np.ascontiguousarray(padded[..., ::-1].transpose(2, 0, 1)[None], np.float32) / 255


def draw(image: np.ndarray, model: Model, threshold: float, letterbox: bool) -> int:
    """Detect in an image (H, W, 3), BGR as OpenCV reads it, and draw on it; number of objects."""
    classes = json.loads(model.metadata.get('classes', '[]'))
    inputs = to_input(image, model.size, letterbox)
    size = np.array([[image.shape[1], image.shape[0]]], np.int64)
    labels, boxes, scores = (output[0] for output in model.detect(inputs, size))
    shown = scores >= threshold
    for label, box, score in zip(labels[shown], boxes[shown], scores[shown], strict=True):
        left, top, right, bottom = box.round().astype(int).tolist()
        colour = cv2.cvtColor(np.uint8([[[label * 47 % 180, 220, 255]]]), cv2.COLOR_HSV2BGR)[0, 0]
        cv2.rectangle(image, (left, top), (right, bottom), colour.tolist(), 2)
        text = f'{classes[label] if classes else label} {score:.2f}'
        cv2.putText(image, text, (left, max(top - 4, 10)), 0, 0.5, colour.tolist(), 1)
    return int(shown.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('model', type=Path, help='.onnx file, or .xml file of OpenVINO')
    parser.add_argument('source', type=Path, help='picture or video')
    parser.add_argument('--out', type=Path, required=True, help='picture or video to write')
    parser.add_argument('--threshold', type=float, default=0.4, help='least score that is shown')
    parser.add_argument(
        '--letterbox',
        action='store_true',
        help='an .xml file of a model that keeps the proportions of images; .onnx files say so',
    )
    args = parser.parse_args()
    for path in (args.model, args.source):
        if not path.is_file():
            parser.error(f'there is no file {path}')
    model = load(args.model)
    if 'values' in model.metadata:
        parser.error(
            f'{args.model} takes the values of image files, and this program RGB in [0, 1]'
        )
    letterbox = args.letterbox or 'letterbox' in model.metadata
    if args.source.suffix.lower() in PICTURES:
        image = cv2.imread(str(args.source))
        if image is None:
            parser.error(f'{args.source} is no picture that OpenCV can read')
        print(f'{draw(image, model, args.threshold, letterbox)} objects')
        if not cv2.imwrite(str(args.out), image):
            parser.error(f'could not write {args.out}')
        return
    video = cv2.VideoCapture(str(args.source))
    fps, writer, frames, begin = video.get(cv2.CAP_PROP_FPS) or 25, None, 0, time.perf_counter()
    while (frame := video.read()[1]) is not None:
        draw(frame, model, args.threshold, letterbox)
        if writer is None:
            fourcc = cv2.VideoWriter.fourcc(*'mp4v')
            writer = cv2.VideoWriter(str(args.out), fourcc, fps, frame.shape[1::-1])
        writer.write(frame)
        frames += 1
        print(f'\r{frames} frames, {frames / (time.perf_counter() - begin):.1f} a second', end='')
    if writer is None:
        parser.error(f'{args.source} is no video that OpenCV can read')
    writer.release()
    print()


if __name__ == '__main__':
    main()
