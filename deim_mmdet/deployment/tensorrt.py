"""TensorRT: the commands that build an engine; builds and runs the engine where that is possible.

Users of DEIM, D-FINE and RT-DETR lose accuracy, up to every detection, with engines that are wholly
in half precision. They found these causes:

- the normalisation layers (https://github.com/Peterande/D-FINE/issues/44 and 98). ONNX opset 16 and
  below takes them apart into single operations, whose square overflows
  (https://github.com/marcoslucianops/DeepStream-Yolo/pull/647);
- the decoder and its choice of queries (https://github.com/Intellindust-AI-Lab/DEIMv2/issues/60);
- TF32 on GPUs that compute in it, without half precision too (D-FINE issue 44);
- TensorRT 10.4, with which nothing is found; with 10.6 that is gone
  (https://github.com/Intellindust-AI-Lab/DEIMv2/issues/53 and 112).

Hence the recipe here. The convolutions of backbone and neck, which are most of the work, are in
half precision. The attention of the neck and the whole head, with choice of queries and arithmetic
of boxes, are in single precision. There is no TF32, and layer norm is one operator.
"""

import fnmatch
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from .extras import require
from .onnx_export import INPUTS, OUTPUTS
from .runtimes import Detections

#: Operators that stay in single precision, by their names in the exported file; a name has at most
#: one *. Operators outside of any module belong to the post-processing.
SINGLE_PRECISION = ('/neck/encoder/*', '/head/*')


def in_single_precision(names: Iterable[str]) -> list[str]:
    """The names that a pattern of :data:`SINGLE_PRECISION` matches."""
    return [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in SINGLE_PRECISION)]


def trtexec_command(
    onnx_path: str | Path,
    engine_path: str | Path,
    size: tuple[int, int],
    max_batch: int = 8,
    half: str | None = None,
    channels: int = 3,
) -> str:
    """The command that builds an engine from an exported file.

    Args:
        onnx_path: The file.
        engine_path: The engine to write.
        size: Height and width that it was exported for.
        max_batch: Largest batch that the engine takes.
        half: The engine's precision. None: single. ``'typed'``: the types of the file, for a file
            exported in half precision (TensorRT 10 and later; the only way from 11 on).
            ``'layers'``: half precision except for :data:`SINGLE_PRECISION`, for a file in single
            precision (TensorRT 8.6 to 10). ``'int8'``: integers where the file has them, for a
            quantised file (TensorRT 8.6 to 10; from 10 on ``'typed'`` does the same).
        channels: Number of channels of the images.
    """
    height, width = size
    shapes = {batch: f'images:{batch}x{channels}x{height}x{width},orig_target_sizes:{batch}x2'
              for batch in (1, max_batch)}  # fmt: skip
    options = [
        f'--onnx={onnx_path}',
        f'--saveEngine={engine_path}',
        f'--minShapes={shapes[1]}',
        f'--optShapes={shapes[1]}',
        f'--maxShapes={shapes[max_batch]}',
        '--noTF32',
    ]
    if half == 'typed':
        options.append('--stronglyTyped')
    elif half == 'layers':
        layers = ','.join(f'{pattern}:fp32' for pattern in SINGLE_PRECISION)
        # 'prefer': the patterns also match operators on integers, which have no other type.
        options += ['--fp16', '--precisionConstraints=prefer', f'--layerPrecisions={layers}']
    elif half == 'int8':
        options.append('--int8')
    return shlex.join(['trtexec', *options])


def build_engine(
    onnx_path: str | Path,
    engine_path: str | Path,
    size: tuple[int, int],
    max_batch: int = 8,
    channels: int = 3,
) -> Path:
    """Build an engine as the command for ``half='typed'`` does, by TensorRT's Python package.

    Args:
        onnx_path: The exported file.
        engine_path: The engine to write.
        size: Height and width that the file was exported for.
        max_batch: Largest batch that the engine takes.
        channels: Number of channels of the images.

    Returns:
        ``engine_path``.

    Raises:
        ImportError: TensorRT isn't installed.
        RuntimeError: It can't read the file or build the engine.
    """
    require('tensorrt')
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = '; '.join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise RuntimeError(f'TensorRT {trt.__version__} cannot read {onnx_path}: {errors}')
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for name, shape in zip(INPUTS, ((channels, *size), (2,)), strict=True):
        profile.set_shape(name, *((batch, *shape) for batch in (1, 1, max_batch)))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError(
            f'TensorRT {trt.__version__} built no engine of {onnx_path}: its messages above give '
            'the reason'
        )
    Path(engine_path).write_bytes(engine)
    return Path(engine_path)


class TensorRTRuntime:
    """An engine on the current GPU.

    Args:
        path: The engine, built by the same version of TensorRT for the same kind of GPU.

    Raises:
        ImportError: TensorRT isn't installed.
        RuntimeError: TensorRT can't read the engine.
    """

    def __init__(self, path: str | Path) -> None:
        require('tensorrt')
        import tensorrt as trt

        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self.engine = runtime.deserialize_cuda_engine(Path(path).read_bytes())
        if self.engine is None:
            raise RuntimeError(
                f'TensorRT {trt.__version__} cannot read the engine {path}: build it anew, by this '
                'version and on this kind of GPU'
            )
        self.context = self.engine.create_execution_context()
        self.num_detections = self.engine.get_tensor_shape('scores')[1]

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> Detections:
        batch, count = len(images), self.num_detections
        tensors = dict(
            zip(INPUTS, (torch.from_numpy(a).cuda() for a in (images, sizes)), strict=True)
        )
        for name, tensor in tensors.items():
            self.context.set_input_shape(name, tuple(tensor.shape))
        for name, shape, dtype in zip(
            OUTPUTS,
            ((batch, count), (batch, count, 4), (batch, count)),
            (torch.int64, torch.float32, torch.float32),
            strict=True,
        ):
            tensors[name] = torch.empty(shape, dtype=dtype, device='cuda')
        for name, tensor in tensors.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream()
        self.context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return Detections(*(tensors[name].cpu().numpy() for name in OUTPUTS))
