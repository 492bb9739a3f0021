"""Detectors in every form and runtime, to be timed."""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from deim_mmdet.deployment import fuse
from deim_mmdet.deployment.cpu import optimize_for_cpu
from deim_mmdet.deployment.runtimes import ONNXRuntime, OpenVINORuntime
from deim_mmdet.deployment.tensorrt import TensorRTRuntime, build_engine
from deim_mmdet.models.layers.input_channels import input_channels

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from .reference_models import build_reference
from .timing import make_timer, peak_memory
from .transformers_models import build_counterpart

_EVERYWHERE = ('reference', 'transformers', 'pytorch', 'fused')
#: The forms of a detector that can be timed on a device; independent implementations come first.
BACKENDS = dict(
    cpu=(*_EVERYWHERE, 'compiled', 'onnxruntime', 'openvino'),
    cuda=(*_EVERYWHERE, 'half', 'graph', 'compiled', 'tensorrt'),
)
#: Backends that run an exported file, which contains the post-processing.
EXPORTED = {'onnxruntime': ONNXRuntime, 'openvino': OpenVINORuntime, 'tensorrt': TensorRTRuntime}
#: Those that don't go beside others in a process on a GPU: the configuration of the reference, and
#: the CUDA graphs of ``torch.compile``, are kept by the process and its first thread.
APART = ('reference', 'compiled')
#: Number of images that an engine of TensorRT takes at most.
MAX_BATCH = 32


def make_runner(
    backend: str,
    config: ConfigDict,
    model: nn.Module,
    size: tuple[int, int],
    onnx_path: Path | None = None,
    num_threads: int = 1,
    device: str = 'cpu',
) -> Callable[[Tensor], object]:
    """A detector in one of its forms as a function of images (B, C, H, W).

    On a CPU all run in single precision. On a GPU, ``'half'``, ``'graph'``, ``'compiled'``,
    ``'tensorrt'`` and ``'transformers'`` run in half precision. Exported files and ``'graph'`` give
    detections, the other forms give class scores and boxes of the queries.

    Args:
        backend: One of :data:`BACKENDS` for the device.
        config: ``model`` of the config.
        model: The detector that was built from it; ``'pytorch'`` changes its layout in memory.
        size: Height and width of the images.
        onnx_path: The detector's export, for the backends in :data:`EXPORTED`; TensorRT's engine is
            written beside it.
        num_threads: Number of threads of these backends' runtimes on the CPU.
        device: ``'cpu'`` or ``'cuda'``, where the images are.

    Raises:
        ImportError: The package that the backend needs isn't installed.
        ValueError: The independent implementation has no such model.
    """
    if backend in EXPORTED:
        return _exported_runner(backend, size, onnx_path, num_threads)
    if backend == 'reference':
        if size[0] != size[1]:
            raise ValueError(f'the reference evaluates square images, not {size[0]}x{size[1]}')
        return torch.inference_mode()(build_reference(config, size[0])[0].to(device))
    on_gpu = device == 'cuda'
    if backend == 'transformers':
        counterpart = build_counterpart(config).to(device, torch.half if on_gpu else torch.float)
        return torch.inference_mode()(
            lambda images: counterpart(pixel_values=images.to(counterpart.dtype))
        )
    detector = _in_form(backend, model.to(device).eval())
    if backend == 'graph':
        sizes = torch.tensor([size[::-1]], dtype=torch.float)
        return lambda images: detector.detect(images, sizes.expand(len(images), 2))

    @torch.inference_mode()
    def run(images: Tensor) -> object:
        return detector.bbox_head(detector.extract_feat(images))

    if backend != 'compiled':
        return run
    # Freezing lays the weights out for the CPU's kernels once instead of at each call.
    options = dict(mode='reduce-overhead') if on_gpu else dict(options={'freezing': True})
    return torch.compile(run, **options)


def _in_form(backend: str, model: nn.Module) -> nn.Module:
    on_gpu = next(model.parameters()).device.type == 'cuda'
    if backend == 'pytorch':
        # The form that DEIMRunner evaluates on a CPU.
        return model if on_gpu else optimize_for_cpu(model)
    half = on_gpu and backend in ('half', 'graph', 'compiled')
    return fuse(model, half=half, graph=backend == 'graph')


def _exported_runner(
    backend: str, size: tuple[int, int], onnx_path: Path, num_threads: int
) -> Callable[[Tensor], object]:
    if backend == 'tensorrt':
        runtime = TensorRTRuntime(
            build_engine(onnx_path, onnx_path.with_suffix('.engine'), size, MAX_BATCH)
        )
    else:
        runtime = EXPORTED[backend](onnx_path, num_threads)
    sizes = np.array([size[::-1]], dtype=np.int64)
    return lambda images: runtime(images.cpu().numpy(), sizes.repeat(len(images), 0))


class Candidate:
    """A detector in one of its forms, with random weights.

    On a CPU it has a process of its own: while runtimes wait for more work, the threads of their
    pools stay busy for a while. In one process, runtimes would take the cores from each other. On
    a GPU only those in :data:`APART` have one.

    Args:
        backend, config, size, onnx_path, num_threads, device: See :func:`make_runner`.

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
        device: str = 'cpu',
    ) -> None:
        if device == 'cpu' or backend in APART:
            self._worker = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
        else:
            self._worker = ThreadPoolExecutor(1)
        try:
            self._call(_build, backend, config, size, onnx_path, num_threads, device)
        except BaseException:
            self._worker.shutdown()
            raise

    def __enter__(self) -> 'Candidate':
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown()

    def seconds(self, batch: int, calls: int, cpu_time: bool = False) -> list[float]:
        """Seconds of batches of random images, after one that isn't timed.

        The time of a batch ends when the device has done the work.

        Args:
            batch: Number of images.
            calls: Number of batches that are timed.
            cpu_time: Whether to take the time that the process computes, see
                :class:`~.timing.CpuTimer`.
        """
        return self._call(_seconds, batch, calls, cpu_time)

    def peak_memory(self, batch: int) -> float | None:
        """:func:`~.timing.peak_memory` of such a batch."""
        return self._call(_peak_memory, batch)

    def _call(self, function: Callable, *args: object) -> object:
        return self._worker.submit(function, *args).result()


# The functions below run in the process, or in the thread, of a candidate.
_built, _building = threading.local(), threading.Lock()


def _build(
    backend: str,
    config: ConfigDict,
    size: tuple[int, int],
    onnx_path: Path | None,
    threads: int,
    device: str,
) -> None:
    import mmdet.models  # noqa: F401  (registers the detectors)

    # Registries aren't made for threads.
    with _building:
        torch.set_num_threads(threads)
        init_default_scope('mmdet')
        torch.manual_seed(0)
        model = MODELS.build(config).eval()
        _built.runner = make_runner(backend, config, model, size, onnx_path, threads, device)
    _built.image = torch.rand(1, input_channels(model), *size, device=device)


def _seconds(batch: int, calls: int, cpu_time: bool) -> list[float]:
    # Before the timing starts: after their work, torch's threads would keep other runtimes from the
    # cores for a while.
    images = _built.image.repeat(batch, 1, 1, 1)
    timer = make_timer(images.device.type, cpu_time)
    seconds = []
    for _ in range(1 + calls):
        timer.mark()
        _built.runner(images)
        timer.mark()
        seconds += timer.read().device
    return seconds[1:]


def _peak_memory(batch: int) -> float | None:
    image = _built.image
    return peak_memory(
        lambda: _built.runner(image.repeat(batch, 1, 1, 1)), device=image.device.type
    )
