"""Detectors in every form and runtime as functions without arguments, to be timed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..deployment import fuse
from ..deployment.onnx_export import export_onnx
from ..deployment.runtimes import ONNXRuntime, OpenVINORuntime
from .transformers_models import build_counterpart

#: What can be timed, the independent implementation first.
BACKENDS = ('transformers', 'pytorch', 'fused', 'compiled', 'onnxruntime', 'openvino')


class Candidates:
    """One detector in several forms.

    All run in single precision on the CPU. Those of PyTorch give class scores and boxes of the
    queries; the exported ones have the post-processing in them.

    Args:
        config: ``model`` of the config.
        model: The detector that was built of it.
        size: Height and width of the images.
        backends: Names out of :data:`BACKENDS`.
        folder: Where exported files are written.
        num_threads: Threads of each runtime.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        size: tuple[int, int],
        backends: Sequence[str],
        folder: Path,
        num_threads: int,
    ) -> None:
        self.size = size
        fused = fuse(model)
        builders = dict(
            transformers=lambda: _keywords(build_counterpart(config)),
            pytorch=lambda: _detector(model.eval()),
            fused=lambda: _detector(fused),
            # Freezing lays the weights out for the kernels once, instead of at each call.
            compiled=lambda: torch.compile(_detector(fused), options={'freezing': True}),
            onnxruntime=lambda: ONNXRuntime(onnx_path, num_threads),
            openvino=lambda: OpenVINORuntime(onnx_path, num_threads),
        )
        if {'onnxruntime', 'openvino'} & set(backends):
            onnx_path = export_onnx(model, folder / 'model.onnx', size)
        self.runners = {name: builders[name]() for name in BACKENDS if name in backends}

    def on_batch(self, batch: int) -> dict[str, Callable[[], object]]:
        """Functions that each process the same random batch."""
        images = torch.rand(batch, 3, *self.size, generator=torch.Generator().manual_seed(0))
        sizes = np.array([self.size[::-1]] * batch, dtype=np.int64)
        return {
            name: _bind(runner, images, sizes, name in ('onnxruntime', 'openvino'))
            for name, runner in self.runners.items()
        }


def _bind(
    runner: Callable, images: Tensor, sizes: np.ndarray, exported: bool
) -> Callable[[], object]:
    if exported:
        return lambda: runner(images.numpy(), sizes)

    @torch.inference_mode()
    def run() -> object:
        return runner(images)

    return run


def _detector(model: nn.Module) -> Callable[[Tensor], object]:
    return lambda images: model.bbox_head(model.extract_feat(images))


def _keywords(model: nn.Module) -> Callable[[Tensor], object]:
    return lambda images: model(pixel_values=images)
