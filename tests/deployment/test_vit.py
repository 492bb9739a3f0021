"""Detectors with a vision transformer in ONNX Runtime and OpenVINO, and as fused modules."""

import itertools

from deim_mmdet.deployment.detector import DeployedDetector
from deim_mmdet.deployment.onnx_export import export_onnx
from deim_mmdet.deployment.runtimes import (
    ONNXRuntime,
    OpenVINORuntime,
    PyTorchRuntime,
    compare,
    export_openvino,
)

import numpy as np
import pytest
import torch
from golden import CONFIGS, image
from mmdet.registry import MODELS
from mmengine.config import Config

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

SIZE = (64, 96)
SMALL = dict(embed_dims=32, num_heads=2, depth=3)
BACKBONES = dict(
    deimv2_x=dict(vit=dict(out_indices=(0, 1, 2), ffn_channels=48, **SMALL), init_cfg=None),
    ecdet_s=dict(ffn_channels=48, init_cfg=None, **SMALL),
)


@pytest.mark.parametrize('name', BACKBONES)
def test_runtimes_give_the_same_detections(name, tmp_path):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.merge_from_dict(dict(model=dict(backbone=BACKBONES[name])))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    for parameter in model.backbone.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    pixels = image('export', (3, 3, *SIZE)).astype(np.float32)
    sizes = np.array([[96, 64], [640, 480], [96, 64]])
    path = export_onnx(model, tmp_path / 'model.onnx', SIZE)
    runtimes = [ONNXRuntime(path, num_threads=1)]
    if pytest.importorskip('openvino'):
        runtimes.append(OpenVINORuntime(export_openvino(path, tmp_path / 'model.xml'), 1))
    for runtime, batch in itertools.product(runtimes, (1, 2, 3)):
        inputs = pixels[:batch], sizes[:batch]
        agreement = compare(PyTorchRuntime(DeployedDetector(model))(*inputs), runtime(*inputs))
        assert agreement.score < 1e-5
        assert agreement.box < 0.05
        assert agreement.unmatched <= 0.01
    # Tables of positions are constants.
    assert not {node.op_type for node in onnx.load(path).graph.node} & {'Sin', 'Cos', 'Range'}
