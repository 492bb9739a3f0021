"""Files in INT8: what is quantised, and how far detections move."""

import json
from itertools import product

from deim_mmdet.deployment.detector import DeployedDetector
from deim_mmdet.deployment.onnx_export import export_onnx
from deim_mmdet.deployment.quantize import RUNTIMES, quantize_onnx
from deim_mmdet.deployment.runtimes import ONNXRuntime, OpenVINORuntime, PyTorchRuntime

import numpy as np
import pytest
from tiny_detectors import tiny_detector

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
SIZE = (64, 64)
CLASSES = ('a', 'b', 'c')


def pictures(count, seed=0):
    """Pictures as inputs of a deployed detector: a bright square each, on noise."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        pixels = random.random((1, 3, *SIZE), dtype=np.float32) * 0.5
        left, top = random.integers(0, 40, 2)
        pixels[..., top : top + 20, left : left + 20] += 0.5
        yield pixels, np.array([[200, 100]])


@pytest.fixture(scope='module', params=[('RTDETRHead', 'onnx'), *product(['DFINEHead'], RUNTIMES)])
def files(request, tmp_path_factory):
    """A detector, its file, the runtime to quantise for, and the quantised file."""
    head, runtime = request.param
    folder = tmp_path_factory.mktemp('files')
    model = tiny_detector(head, denoising=None, neck=True).eval()
    source = export_onnx(model, folder / 'model.onnx', SIZE, classes=CLASSES)
    path = quantize_onnx(source, folder / 'new' / 'int8.onnx', pictures(8), runtime)
    return model, source, runtime, path


def makers(graph):
    return {output: node for node in graph.node for output in node.output}


def test_convolutions_of_backbone_and_neck_are_quantised_and_nothing_else(files):
    _, source, _, path = files
    graph = onnx.load(path).graph
    made_by = makers(graph)
    quantised, single = set(), set()
    for node in graph.node:
        if node.op_type in ('Conv', 'Gemm', 'MatMul'):
            features, weight = (made_by.get(name) for name in node.input[:2])
            whole = weight is not None and weight.op_type == 'DequantizeLinear'
            (quantised if whole else single).add(node.name)
            assert not whole or features.op_type == 'DequantizeLinear'
    assert quantised == {
        node.name
        for node in onnx.load(source).graph.node
        if node.op_type == 'Conv' and not node.name.startswith('/head/')
    }
    assert {name.split('/')[1] for name in quantised} == {'backbone', 'neck'}
    assert {'/'.join(name.split('/')[1:3]) for name in single if 'head' not in name} == {
        'neck/encoder'
    }


def test_types_are_those_that_the_runtime_takes(files):
    *_, runtime, path = files
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = makers(graph)
    for node in graph.node:
        if node.op_type != 'Conv' or node.name.startswith('/head/'):
            continue
        features, weight = (made_by[name] for name in node.input[:2])
        zero = constants[features.input[2]]
        scales = constants[weight.input[1]]
        assert len(scales) == constants[weight.input[2]].size > 1
        assert (constants[weight.input[2]] == 0).all()
        if runtime == 'tensorrt':
            assert zero == 0
            assert zero.dtype == np.int8
            # Biases are no integers.
            assert all(name not in made_by for name in node.input[2:])
        else:
            assert zero.dtype == np.uint8
            weights = constants[weight.input[0]]
            assert weights.dtype == np.int8
            assert 32 < np.abs(weights.astype(int)).max() <= 64


def test_detections_stay_near(files):
    """Nearer than those of two pictures are to each other."""
    model, _, runtime, path = files
    inputs, others = pictures(2, seed=1)
    reference = PyTorchRuntime(DeployedDetector(model))
    expected = reference(*inputs)
    far = np.abs(expected.scores - reference(*others).scores).max()
    runs = [ONNXRuntime(path, 1)]
    if runtime == 'openvino':
        pytest.importorskip('openvino')
        runs.append(OpenVINORuntime(path, 1))
    for run in runs:
        assert 0 < np.abs(expected.scores - run(*inputs).scores).max() < far


def test_metadata_are_kept(files):
    properties = {entry.key: entry.value for entry in onnx.load(files[-1]).metadata_props}
    assert properties == dict(classes=json.dumps(CLASSES))


def test_mistakes(tmp_path, monkeypatch):
    model = tiny_detector(denoising=None, neck=True).eval()
    source = export_onnx(model, tmp_path / 'source.onnx', SIZE)
    out = tmp_path / 'model.onnx'
    with pytest.raises(ValueError, match='INT8 needs pictures to calibrate with'):
        quantize_onnx(source, out, iter(()))
    with pytest.raises(ValueError, match="'tvm': there are onnx, openvino, tensorrt"):
        quantize_onnx(source, out, pictures(1), 'tvm')
    monkeypatch.setattr('deim_mmdet.deployment.extras.find_spec', lambda name: None)
    with pytest.raises(ImportError, match='onnx is not installed'):
        quantize_onnx(source, out, pictures(1))
    assert not out.exists()
