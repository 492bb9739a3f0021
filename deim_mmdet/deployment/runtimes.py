"""Runs deployed detectors in several runtimes by the same call, and compares them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .extras import require
from .onnx_export import INPUTS, OUTPUTS


class Detections(NamedTuple):
    """What a deployed detector finds in a batch of B images: N detections of each, best first.

    Attributes:
        labels: (B, N) int64, positions in the list of classes.
        boxes: (B, N, 4) as (x1, y1, x2, y2) in pixels.
        scores: (B, N), in [0, 1].
    """

    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


class PyTorchRuntime:
    """A :class:`DeployedDetector` as a function of arrays, like all runtimes here.

    Called with ``images`` (B, C, H, W) float32 and ``sizes`` (B, 2) int64, the arguments of
    :meth:`DeployedDetector.forward`, a runtime returns :class:`Detections`.

    Args:
        detector: The detector, on the CPU.
    """

    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector.eval()

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> Detections:
        outputs = self.detector(torch.from_numpy(images), torch.from_numpy(sizes))
        return Detections(*(output.cpu().numpy() for output in outputs))


class ONNXRuntime:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: The file.
        num_threads: Threads of one operator; 0 for as many as there are cores.

    Raises:
        ImportError: ONNX Runtime isn't installed.
    """

    def __init__(self, path: str | Path, num_threads: int = 0) -> None:
        require('onnxruntime')
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider']
        )

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> Detections:
        inputs = dict(zip(INPUTS, (images, sizes), strict=True))
        return Detections(*self.session.run(list(OUTPUTS), inputs))


class OpenVINORuntime:
    """An ONNX file or OpenVINO model (.xml) in OpenVINO on the CPU, for low latency.

    Args:
        path: The file.
        num_threads: Threads; 0 for as many as there are cores.

    Raises:
        ImportError: OpenVINO isn't installed.
    """

    def __init__(self, path: str | Path, num_threads: int = 0) -> None:
        require('openvino')
        import openvino

        config = {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32'}
        if num_threads:
            config['INFERENCE_NUM_THREADS'] = num_threads
        self.model = openvino.Core().compile_model(str(path), 'CPU', config)

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> Detections:
        outputs = self.model(dict(zip(INPUTS, (images, sizes), strict=True)))
        return Detections(*(outputs[name] for name in OUTPUTS))


def export_openvino(onnx_path: str | Path, path: str | Path) -> Path:
    """Convert an ONNX file into an OpenVINO model.

    Args:
        onnx_path: The ONNX file.
        path: The .xml file to write; a .bin file with the weights is written beside it.

    Returns:
        ``path``.

    Raises:
        ImportError: OpenVINO isn't installed.
    """
    require('openvino')
    import openvino

    # convert_model (OpenVINO 2026.4) would send statistics of its use to its makers.
    model = openvino.Core().read_model(str(onnx_path))
    # Weights stay in single precision; by default they would be stored in half.
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return Path(path)


class Agreement(NamedTuple):
    """How far the detections of two runtimes agree.

    Attributes:
        score: Largest difference of scores at the same rank.
        box: Largest difference of a coordinate between partners, in pixels.
        unmatched: Share of detections without a partner. A partner has the same label and nearly
            the same score. Some may have none: rounding decides which token is selected last.
    """

    score: float
    box: float
    unmatched: float

    def __str__(self) -> str:
        return (
            f'largest difference of scores {self.score:.1e}, of boxes {self.box:.1e} pixels, '
            f'{self.unmatched:.1%} of detections without partner'
        )


def compare(
    expected: Detections, actual: Detections, *, score_tolerance: float = 1e-3
) -> Agreement:
    """Compare detections of the same images in two runtimes; see :class:`Agreement`.

    Equal scores may change places. So each detection is compared with the nearest possible partner,
    within 1 % of the spread of the coordinates.

    Args:
        expected: Detections in the first runtime.
        actual: Detections in the second.
        score_tolerance: Largest difference of the scores of partners.
    """
    score = float(np.abs(expected.scores - actual.scores).max())
    reach = 0.01 * float(np.ptp(expected.boxes))
    distances = np.concatenate(
        [
            _partner_distances(*detections, score_tolerance)
            for detections in zip(*expected, *actual, strict=True)
        ]
    )
    matched = distances <= reach
    return Agreement(score, float(distances[matched].max(initial=0.0)), float(1 - matched.mean()))


def _partner_distances(
    labels: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    other_labels: np.ndarray,
    other_boxes: np.ndarray,
    other_scores: np.ndarray,
    score_tolerance: float,
) -> np.ndarray:
    """(N,) largest distance of each detection's coordinates to its partner's; infinity without."""
    candidates = (labels[:, None] == other_labels) & (
        np.abs(scores[:, None] - other_scores) <= score_tolerance
    )
    distances = np.abs(boxes[:, None] - other_boxes).max(-1)
    return np.where(candidates, distances, np.inf).min(axis=1)
