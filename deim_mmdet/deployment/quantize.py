"""Quantises exported detectors: convolutions of backbone and neck with 8-bit integers.

The file states the integers as pairs of ``QuantizeLinear`` and ``DequantizeLinear``, which ONNX
Runtime, OpenVINO and TensorRT all turn into integer kernels. Everything else stays in single
precision: the attention of the neck, the head with its choice of queries and arithmetic of boxes,
and the post-processing.
"""

import itertools
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..utils.errors import UserError
from .extras import require
from .onnx_export import INPUTS
from .tensorrt import in_single_precision

if TYPE_CHECKING:
    import onnx

#: The runtimes that a file can be quantised for.
RUNTIMES = ('onnx', 'openvino', 'tensorrt')


def quantize_onnx(
    source: str | Path,
    path: str | Path,
    images: Iterable[tuple[np.ndarray, np.ndarray]],
    runtime: str = 'onnx',
) -> Path:
    """Write an exported detector with the convolutions of backbone and neck in INT8.

    Weights have a scale for each output channel, features one for each tensor, from the smallest
    and largest values that the images give. The rest depends on what the runtime is fast at:

    - ``'onnx'``: features unsigned with a zero point. Inputs and outputs of convolutions are
      quantised; ReLUs become part of the quantisation. Weights have 7 bits, since the products of
      processors without VNNI instructions saturate with 8.
    - ``'openvino'``: the same, but outputs are not quantised: OpenVINO makes activations and the
      quantisation of the next layer's input part of the convolution.
    - ``'tensorrt'``: features signed and symmetric, as TensorRT takes them, and weights with
      8 bits. Neither biases nor outputs are quantised.

    Args:
        source: A file of :func:`~.onnx_export.export_onnx` in single precision.
        path: File to write; its metadata are those of ``source``.
        images: Pictures as inputs of the detector: (1, C, H, W) float32 and (1, 2) int64, see
            :class:`~.detector.DeployedDetector`.
        runtime: One of :data:`RUNTIMES`.

    Returns:
        ``path``.

    Raises:
        ImportError: ``onnx`` or ``onnxruntime`` isn't installed.
        ValueError: There are no images, or the runtime is unknown.
    """
    require('onnx', 'onnxruntime')
    if runtime not in RUNTIMES:
        raise UserError(
            f'a file cannot be quantised for runtime {runtime!r}: there are {", ".join(RUNTIMES)}'
        )
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    model = onnx.load(source)
    symmetric = runtime == 'tensorrt'
    extra = dict(ActivationSymmetric=symmetric)
    operators = ['Conv']
    if runtime == 'onnx':
        operators += ['Relu', 'Clip']
    else:
        extra['OpTypesToExcludeOutputQuantization'] = operators
    if symmetric:
        extra |= dict(AddQDQPairToWeight=True, QuantizeBias=False)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        quantized = Path(folder) / 'quantized.onnx'
        quantize_static(
            str(source),
            str(quantized),
            _reader(images),
            op_types_to_quantize=operators,
            nodes_to_exclude=_excluded(model.graph),
            per_channel=True,
            reduce_range=not symmetric,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=extra,
        )
        result = onnx.load(quantized)
    onnx.helper.set_model_props(result, {entry.key: entry.value for entry in model.metadata_props})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(result, path)
    return path


def _excluded(graph: 'onnx.GraphProto') -> list[str]:
    """Names of the operators that keep single precision."""
    from onnx.numpy_helper import to_array

    constants = {tensor.name: to_array(tensor) for tensor in graph.initializer}

    def is_relu(node: 'onnx.NodeProto') -> bool:
        low, high = (*node.input[1:], '', '')[:2]
        return low in constants and constants[low] == 0 and not high

    single = set(in_single_precision(node.name for node in graph.node))
    return [
        node.name
        for node in graph.node
        if node.name in single
        or not node.name.startswith(('/backbone/', '/neck/'))
        # Quantisation replaces a clip at 0 only.
        or (node.op_type == 'Clip' and not is_relu(node))
    ]


def _reader(images: Iterable[tuple[np.ndarray, np.ndarray]]) -> object:
    """The images in the form of ONNX Runtime's calibration.

    Raises:
        ValueError: There are none.
    """
    from onnxruntime.quantization import CalibrationDataReader

    feeds = (dict(zip(INPUTS, inputs, strict=True)) for inputs in images)
    first = next(feeds, None)
    if first is None:
        raise UserError(
            'INT8 needs pictures to calibrate with, and the data set has none: name another one'
        )
    feeds = itertools.chain([first], feeds)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without ONNX Runtime's advice to simplify the file first, which the export has done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
