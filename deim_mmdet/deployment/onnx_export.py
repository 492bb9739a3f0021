"""Exports a detector to ONNX: one file from images to detections, for any batch size."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..models.layers.input_channels import input_channels
from ..utils.errors import UserError
from .detector import DeployedDetector, takes_file_values
from .extras import require

if TYPE_CHECKING:
    import onnx

#: 17 is the first version with LayerNormalization. Earlier ones take a layer norm apart into
#: several operators, and the square among them overflows in half precision.
OPSET = 17

INPUTS = ('images', 'orig_target_sizes')
OUTPUTS = ('labels', 'boxes', 'scores')


def export_onnx(
    model: nn.Module,
    path: str | Path,
    size: tuple[int, int] = (640, 640),
    opset: int = OPSET,
    half: bool = False,
    classes: Sequence[str] | None = None,
    letterbox: Mapping | None = None,
) -> Path:
    """Write a detector as an ONNX file.

    Inputs and outputs are those of :class:`DeployedDetector`. The batch is dynamic, the size of the
    images is fixed. Only operators of the ONNX standard are used.

    Args:
        model: A detector with one of this package's heads; it stays as it is.
        path: File to write; folders are made.
        size: Height and width of the images in pixels.
        opset: Version of ONNX's operators, at least 17.
        half: Write backbone and neck in half precision; the inputs stay in single precision.
        classes: Class names in the order of the labels, for the file's metadata: a list in JSON
            under ``classes``. None where they aren't known.
        letterbox: How the images keep their proportions, see
            :func:`~deim_mmdet.deployment.inputs.letterbox_of`. The file's metadata say so under
            ``letterbox``, and a ``pad_val`` of its own under ``padding``. Where the file takes the
            values of image files (:func:`~deim_mmdet.deployment.detector.takes_file_values`), they
            say ``values: file``. None: the images are stretched.

    Returns:
        ``path``.

    Raises:
        TypeError: The head is not one of this package's.
        ValueError: ``size`` isn't divisible by the model's largest stride, or ``opset`` too low.
        ImportError: ``onnx`` or ``onnxruntime`` isn't installed.
    """
    require('onnx', 'onnxruntime')
    check_size(size, model)
    if opset < OPSET:
        raise UserError(
            f'opset {opset} has no LayerNormalization, without which half precision overflows: '
            f'use {OPSET} or higher'
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    detector = DeployedDetector(model, half, letterbox is not None).cpu().eval()
    # A batch of two: the batch size must not be traced as the constant 1.
    example = (torch.rand(2, input_channels(model), *size), torch.tensor([[size[1], size[0]]] * 2))
    with torch.no_grad(), warnings.catch_warnings():
        # Numbers taken from shapes become constants on purpose. The old exporter, which traces, is
        # used on purpose too: it gives operators the names of their modules.
        warnings.filterwarnings('ignore', category=torch.jit.TracerWarning)
        warnings.filterwarnings('ignore', category=DeprecationWarning)
        warnings.filterwarnings('ignore', message='Constant folding', category=UserWarning)
        # This call caches positions and anchors, so that they are constants to the tracer.
        detector(*example)
        torch.onnx.export(
            detector,
            example,
            str(path),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: 'batch'} for name in (*INPUTS, *OUTPUTS)},
            opset_version=opset,
            dynamo=False,
        )
    if not half:
        # Not with half: the runtime would put casts around what a CPU can't do in half precision.
        simplify(path)
    metadata = {} if classes is None else dict(classes=json.dumps(list(classes)))
    if letterbox is not None:
        metadata['letterbox'] = 'true'
        if letterbox.get('pad_val') is not None:
            metadata['padding'] = str(letterbox['pad_val'])
    if takes_file_values(model):
        metadata['values'] = 'file'
    if metadata:
        _write_metadata(path, metadata)
    return path


def _write_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def check_size(size: tuple[int, int], model: nn.Module) -> None:
    """Check the size of a detector's input.

    Args:
        size: Height and width in pixels.
        model: The detector.

    Raises:
        ValueError: A side isn't a positive multiple of the largest stride; that is 32 where the
            neck doesn't say it.
    """
    stride = max(getattr(getattr(model, 'neck', None), 'feat_strides', (32,)))
    if any(side <= 0 or side % stride for side in size):
        raise UserError(
            f'the input size {size[0]}x{size[1]} (height x width) must be divisible by {stride} '
            f'on both sides, e.g. {" ".join(str(max(round(s / stride), 1) * stride) for s in size)}'
        )


def simplify(path: Path) -> None:
    """Fold constants and pads in an ONNX file, in place.

    Operators stay those of the ONNX standard and keep their names.

    Args:
        path: The file.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    model = onnx.load(path)
    # The runtime declares its own operators too, but none is used.
    standard = [opset for opset in model.opset_import if opset.domain == '']
    del model.opset_import[:]
    model.opset_import.extend(standard)
    _fold_pads(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _fold_pads(graph: 'onnx.GraphProto') -> None:
    """Make pads with zeros part of the convolutions and poolings after them.

    Runtimes lay features out in blocks of channels and undo that for a pad. Pooling pads with the
    smallest number instead of 0; for features that aren't negative the result is the same.
    """
    from onnx.numpy_helper import to_array

    constants = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    nodes = {output: node for node in graph.node for output in node.output}

    def not_negative(name: str) -> bool:
        node = nodes.get(name)
        if node is None or node.op_type != 'Clip':
            return node is not None and node.op_type == 'Relu'
        low = constants.get(node.input[1])
        return low is not None and low >= 0

    for node in graph.node:
        pad = nodes.get(node.input[0]) if node.op_type in ('Conv', 'MaxPool') else None
        if pad is None or pad.op_type != 'Pad' or any(pad.input[2:]):
            continue
        if node.op_type == 'Conv' or not_negative(pad.input[0]):
            node.input[0] = pad.input[0]
            # Pads before and after each axis; batch and channels have none.
            before, after = constants[pad.input[1]].reshape(2, -1)
            (own,) = (attribute.ints for attribute in node.attribute if attribute.name == 'pads')
            own[:] = [int(size) for size in own + np.concatenate([before[2:], after[2:]])]
    used = {name for node in graph.node for name in node.input}
    for pad in [n for n in graph.node if n.op_type == 'Pad' and n.output[0] not in used]:
        graph.node.remove(pad)
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
