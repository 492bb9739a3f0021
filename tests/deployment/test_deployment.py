"""Exported models in other runtimes against PyTorch, and what is refused."""

import sys
from unittest import mock

from deim_mmdet.deployment import tensorrt
from deim_mmdet.deployment.detector import DeployedDetector
from deim_mmdet.deployment.extras import require
from deim_mmdet.deployment.onnx_export import export_onnx, simplify
from deim_mmdet.deployment.runtimes import (
    Detections,
    ONNXRuntime,
    OpenVINORuntime,
    PyTorchRuntime,
    compare,
    export_openvino,
)

import numpy as np
import pytest
import torch
from golden import build_model, filled_model, image
from mmdet.structures import DetDataSample
from tiny_detectors import tiny_detector

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

SIZE = (128, 192)
SIZES = np.array([[640, 480], [50, 1000], [192, 128]])


def images(count):
    return image('export', (count, 3, *SIZE)).astype(np.float32)


@pytest.fixture(scope='module', params=['deim_dfine_n', 'rtdetrv2_r18', 'deimv2_n'])
def model(request):
    return filled_model(request.param).float().eval()


@pytest.fixture(scope='module')
def onnx_path(model, tmp_path_factory):
    return export_onnx(model, tmp_path_factory.mktemp('onnx') / 'model.onnx', SIZE)


def test_detections_are_those_of_predict(model):
    """Of images given as mmdet gives them: BGR in [0, 255] to the data preprocessor."""
    pixels, sizes = images(2), SIZES[:2]
    samples = [
        DetDataSample(
            metainfo=dict(img_shape=SIZE, scale_factor=(SIZE[1] / width, SIZE[0] / height))
        )
        for width, height in sizes
    ]
    inputs = [torch.from_numpy(array[::-1].copy() * 255) for array in pixels]
    with torch.no_grad():
        results = model.test_step(dict(inputs=inputs, data_samples=samples))
    expected = Detections(
        *(
            np.stack([result.pred_instances[key].numpy() for result in results])
            for key in ('labels', 'bboxes', 'scores')
        )
    )
    got = PyTorchRuntime(DeployedDetector(model))(pixels, sizes)
    assert got.labels.shape == (2, 300)
    assert got.labels.dtype == np.int64
    agreement = compare(expected, got)
    assert agreement.score < 1e-5
    assert agreement.box < 0.05
    assert agreement.unmatched <= 0.01


@pytest.mark.parametrize('batch', [1, 3])
def test_onnx_runtime_gives_the_same_detections(model, onnx_path, batch):
    inputs = images(batch), SIZES[:batch]
    got = ONNXRuntime(onnx_path, num_threads=1)(*inputs)
    assert got.labels.shape == (batch, 300)
    agreement = compare(PyTorchRuntime(DeployedDetector(model))(*inputs), got)
    assert agreement.score < 1e-5
    assert agreement.box < 0.05
    assert agreement.unmatched <= 0.01


def test_openvino_gives_the_same_detections(model, onnx_path, tmp_path):
    pytest.importorskip('openvino')
    path = export_openvino(onnx_path, tmp_path / 'model.xml')
    inputs = images(2), SIZES[:2]
    agreement = compare(
        PyTorchRuntime(DeployedDetector(model))(*inputs), OpenVINORuntime(path, 1)(*inputs)
    )
    assert agreement.score < 1e-5
    assert agreement.box < 0.05
    assert agreement.unmatched <= 0.01


def test_the_file_is_portable(onnx_path):
    """Operators of the standard only, layer norm as one of them, named after their modules."""
    model = onnx.load(onnx_path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [('', 17)]
    assert {node.domain for node in model.graph.node} == {''}
    kinds = [node.op_type for node in model.graph.node]
    assert 'LayerNormalization' in kinds
    assert 'BatchNormalization' not in kinds
    names = [node.name for node in model.graph.node]
    assert any(name.startswith('/backbone/') for name in names)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        'images': ['batch', 3, *SIZE],
        'orig_target_sizes': ['batch', 2],
        'labels': ['batch', 300],
        'boxes': ['batch', 300, 4],
        'scores': ['batch', 300],
    }


def test_positions_and_anchors_are_constants(onnx_path):
    kinds = {node.op_type for node in onnx.load(onnx_path).graph.node}
    assert not kinds & {'Sin', 'Cos', 'Range'}


class Padded(torch.nn.Module):
    """Features limited from below, padded with zeros for a convolution and a pooling."""

    def __init__(self, low):
        super().__init__()
        self.low = low
        self.conv = torch.nn.Conv2d(4, 4, 2)

    def forward(self, x):
        x = torch.nn.functional.pad(
            x.relu() if self.low is None else x.clamp(self.low), (0, 1, 0, 1)
        )
        return self.conv(x) + torch.nn.functional.max_pool2d(x, 2, 1)


@pytest.mark.parametrize(('low', 'pads'), [(None, 0), (0.5, 0), (-0.5, 1)])
def test_pads_become_part_of_what_follows(low, pads, tmp_path):
    """Where it is the same: a pooling's own pads are smaller than every feature, not 0."""
    folded = tmp_path / 'padded.onnx'
    module = Padded(low).eval()
    torch.onnx.export(
        module, (torch.zeros(1, 4, 6, 6),), str(folded), opset_version=17, dynamo=False,
        input_names=['x'],
    )  # fmt: skip
    simplify(folded)
    graph = onnx.load(folded).graph
    assert sum(node.op_type == 'Pad' for node in graph.node) == pads
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used
    x = image('pads', (1, 4, 6, 6)).astype(np.float32) - 2
    expected = module(torch.from_numpy(x)).detach().numpy()
    (got,) = onnxruntime.InferenceSession(str(folded)).run(None, dict(x=x))
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_layers_in_single_precision_are_in_the_file(onnx_path):
    """Every pattern meets operators; those that users report are met, convolutions are not."""
    nodes = onnx.load(onnx_path).graph.node
    for pattern in tensorrt.SINGLE_PRECISION:
        assert pattern.count('*') == 1
        assert any(node.name.startswith(pattern.rstrip('*')) for node in nodes)
    kept = set(tensorrt.in_single_precision(node.name for node in nodes))
    for kind in ('LayerNormalization', 'Softmax', 'GridSample'):
        assert {node.name for node in nodes if node.op_type == kind} <= kept
    # All convolutions but those that project a wide neck's levels for the decoder.
    assert all(
        node.name.startswith('/head/input_proj')
        for node in nodes
        if node.op_type == 'Conv' and node.name in kept
    )


@pytest.mark.parametrize('name', ['deim_dfine_n', 'deimv2_pico', 'DFINEHead', 'RTDETRHead'])
def test_half_precision_keeps_attention_and_head_in_single(name, tmp_path):
    if name.endswith('Head'):
        model = tiny_detector(name, denoising=None, neck=True).eval()
    else:
        model = filled_model(name).float().eval()
    path = export_onnx(model, tmp_path / 'half.onnx', SIZE, half=True)
    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert all(value.type.tensor_type.elem_type != half for value in graph.output)
    for node in graph.node:
        if node.op_type in ('Conv', 'Gemm', 'LayerNormalization') and node.input[1] in types:
            kept = bool(tensorrt.in_single_precision([node.name]))
            assert kept == (node.op_type != 'Conv' or node.name.startswith('/head/')), node.name
            assert types[node.input[1]] == (single if kept else half), node.name
    inputs = images(1), SIZES[:1]
    agreement = compare(
        PyTorchRuntime(DeployedDetector(model))(*inputs), ONNXRuntime(path, 1)(*inputs)
    )
    assert 0 < agreement.score < 5e-3


def test_other_preprocessing_is_part_of_the_model():
    """Mean, standard deviation and BGR of a config of its own, against mmengine's preprocessor."""
    model = build_model('deim_dfine_n').eval()
    preprocessor = model.data_preprocessor
    preprocessor.mean[:, 0, 0] = torch.tensor([10.0, 20.0, 30.0])
    preprocessor.std[:, 0, 0] = torch.tensor([50.0, 60.0, 70.0])
    preprocessor._channel_conversion = False
    rgb = torch.from_numpy(images(1))
    expected = preprocessor(dict(inputs=[rgb[0].flip(0) * 255]))['inputs']
    detector = DeployedDetector(model)
    seen = []
    detector.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    detector(rgb, torch.tensor([[1, 1]]))
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(('size', 'hint'), [((100, 192), '96 192'), ((192, 0), '192 32')])
def test_sizes_that_the_strides_do_not_divide(tmp_path, size, hint):
    with pytest.raises(ValueError, match=rf'divisible by 32 on both sides, e\.g\. {hint}'):
        export_onnx(build_model('deim_dfine_n'), tmp_path / 'model.onnx', size)


def test_opsets_without_layer_norm(tmp_path):
    with pytest.raises(ValueError, match='opset 16 has no LayerNormalization'):
        export_onnx(build_model('deim_dfine_n'), tmp_path / 'model.onnx', SIZE, opset=16)


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setattr('deim_mmdet.deployment.extras.find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"onnx is not installed: pip install 'deim_mmdet\[exp"):
        require('onnx')
    with pytest.raises(ImportError, match=r"pip install 'deim_mmdet\[openvino\]'"):
        require('openvino')


def detections(scores, shift=0.0):
    count = len(scores)
    boxes = np.arange(count * 4, dtype=np.float32).reshape(1, count, 4) * 50 + shift
    return Detections(np.arange(count)[None], boxes, np.array([scores], dtype=np.float32))


def test_comparison_finds_partners_that_changed_places():
    expected = detections([0.9, 0.5, 0.5])
    swapped = Detections(*(array[:, [0, 2, 1]] for array in expected))
    assert compare(expected, swapped) == (0.0, 0.0, 0.0)


def test_comparison_finds_differences():
    expected = detections([0.9, 0.5, 0.4])
    assert compare(expected, detections([0.9, 0.5, 0.4], shift=2.0)).box == pytest.approx(2.0)
    assert compare(expected, detections([0.8, 0.5, 0.4])).score == pytest.approx(0.1)
    assert compare(expected, detections([0.8, 0.5, 0.4])).unmatched == pytest.approx(1 / 3)
    assert compare(expected, detections([0.9, 0.5, 0.4], shift=200.0)).unmatched == 1


def test_command_for_tensorrt():
    command = tensorrt.trtexec_command('a b.onnx', 'm.engine', (480, 640), 4, 'layers').split()
    assert command[:2] == ['trtexec', "'--onnx=a"]
    assert '--maxShapes=images:4x3x480x640,orig_target_sizes:4x2' in command
    assert '--noTF32' in command
    assert "'--layerPrecisions=/neck/encoder/*:fp32,/head/*:fp32'" in command
    typed = tensorrt.trtexec_command('a.onnx', 'm.engine', (480, 640), 4, 'typed')
    assert '--stronglyTyped' in typed
    assert '--fp16' not in typed
    int8 = tensorrt.trtexec_command('a.onnx', 'm.engine', (480, 640), 4, 'int8')
    assert int8.endswith('--noTF32 --int8')
    assert 'fp16' not in tensorrt.trtexec_command('a.onnx', 'm.engine', (480, 640), 4)


def test_an_engine_that_tensorrt_cannot_read_is_refused(tmp_path, monkeypatch):
    package = mock.MagicMock(__version__='10.1')
    # What TensorRT gives for an engine of another version.
    package.Runtime.return_value.deserialize_cuda_engine.return_value = None
    monkeypatch.setitem(sys.modules, 'tensorrt', package)
    monkeypatch.setattr('deim_mmdet.deployment.extras.find_spec', lambda name: True)
    path = tmp_path / 'old.engine'
    path.write_bytes(b'')
    with pytest.raises(RuntimeError, match=r'10\.1 cannot read the engine .*old\.engine: build it'):
        tensorrt.TensorRTRuntime(path)
