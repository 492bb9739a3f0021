"""Detectors in every form and runtime, each in a process of its own, to be timed."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from deim_mmdet.deployment import fuse
from deim_mmdet.deployment.cpu import optimize_for_cpu
from deim_mmdet.deployment.runtimes import ONNXRuntime, OpenVINORuntime

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from .reference_models import build_reference
from .timing import peak_memory
from .transformers_models import build_counterpart

#: The forms of a detector that can be timed; independent implementations come first.
BACKENDS = (
    'reference',
    'transformers',
    'pytorch',
    'fused',
    'compiled',
    'onnxruntime',
    'openvino',
)
#: Backends that run an exported file, which contains the post-processing.
EXPORTED = {'onnxruntime': ONNXRuntime, 'openvino': OpenVINORuntime}


def make_runner(
    backend: str,
    config: ConfigDict,
    model: nn.Module,
    size: tuple[int, int],
    onnx_path: Path | None = None,
    num_threads: int = 1,
) -> Callable[[Tensor], object]:
    """A detector in one of its forms as a function of images (B, 3, H, W).

    All run in single precision on the CPU. The forms of PyTorch give class scores and boxes of the
    queries, the exported ones give detections.

    Args:
        backend: One of :data:`BACKENDS`.
        config: ``model`` of the config.
        model: The detector that was built from it; ``'pytorch'`` changes its layout in memory.
        size: Height and width of the images.
        onnx_path: The detector's export, for the backends in :data:`EXPORTED`.
        num_threads: Number of threads of these backends' runtimes.

    Raises:
        ImportError: The package that the backend needs isn't installed.
        ValueError: The independent implementation has no such model.
    """
    if backend in EXPORTED:
        runtime = EXPORTED[backend](onnx_path, num_threads)
        sizes = np.array([size[::-1]], dtype=np.int64)
        return lambda images: runtime(images.numpy(), sizes.repeat(len(images), 0))
    if backend == 'reference':
        if size[0] != size[1]:
            raise ValueError(f'the reference evaluates square images, not {size[0]}x{size[1]}')
        return torch.inference_mode()(build_reference(config, size[0])[0])
    if backend == 'transformers':
        counterpart = build_counterpart(config)
        return torch.inference_mode()(lambda images: counterpart(pixel_values=images))
    # 'pytorch' is the form that DEIMRunner evaluates on a CPU.
    detector = optimize_for_cpu(model.eval()) if backend == 'pytorch' else fuse(model)

    @torch.inference_mode()
    def run(images: Tensor) -> object:
        return detector.bbox_head(detector.extract_feat(images))

    # Freezing lays the weights out for the kernels once instead of at each call.
    return torch.compile(run, options={'freezing': True}) if backend == 'compiled' else run


class Candidate:
    """A detector in one of its forms, with random weights, in a process of its own.

    While runtimes wait for more work, the threads of their pools stay busy for a while. In one
    process, runtimes would take the cores from each other.

    Args:
        backend, config, size, onnx_path, num_threads: See :func:`make_runner`.

    Raises:
        ImportError, ValueError: See :func:`make_runner`.
    """

    def __init__(
        self,
        backend: str,
        config: ConfigDict,
        size: tuple[int, int],
        onnx_path: Path | None,
        num_threads: int,
    ) -> None:
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
        try:
            self._call(_build, backend, config, size, onnx_path, num_threads)
        except BaseException:
            self._process.shutdown()
            raise

    def __enter__(self) -> 'Candidate':
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def seconds(self, batch: int, calls: int, cpu_time: bool = False) -> list[float]:
        """Seconds of each of ``calls`` batches of random images, after one that isn't timed."""
        return self._call(_seconds, batch, calls, cpu_time)

    def peak_memory(self, batch: int) -> float | None:
        """:func:`~.timing.peak_memory` of such a batch."""
        return self._call(_peak_memory, batch)

    def _call(self, function: Callable, *args: object) -> object:
        return self._process.submit(function, *args).result()


# The functions below run in the process of a candidate.
_built: dict[str, Any] = {}


def _build(
    backend: str, config: ConfigDict, size: tuple[int, int], onnx_path: Path | None, threads: int
) -> None:
    import mmdet.models  # noqa: F401  (registers the detectors)

    torch.set_num_threads(threads)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(config).eval()
    _built['runner'] = make_runner(backend, config, model, size, onnx_path, threads)
    _built['image'] = torch.rand(1, 3, *size)


def _seconds(batch: int, calls: int, cpu_time: bool) -> list[float]:
    clock = time.process_time if cpu_time else time.perf_counter
    # Before the timing starts: after their work, torch's threads would keep other runtimes from the
    # cores for a while.
    images = _built['image'].repeat(batch, 1, 1, 1)
    seconds = []
    for call in range(1 + calls):
        start = clock()
        _built['runner'](images)
        if call:
            seconds.append(clock() - start)
    return seconds


def _peak_memory(batch: int) -> float | None:
    return peak_memory(lambda: _built['runner'](_built['image'].repeat(batch, 1, 1, 1)))
