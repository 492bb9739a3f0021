"""Detectors with parts that are not this package's, in their fused and exported forms."""

from unittest.mock import patch

from deim_mmdet.deployment import fuse, fuse_for_export
from deim_mmdet.deployment.cpu import optimize_for_cpu
from deim_mmdet.deployment.detector import DeployedDetector
from deim_mmdet.deployment.modules import FusedSelfAttention
from deim_mmdet.deployment.onnx_export import export_onnx
from deim_mmdet.deployment.runtimes import ONNXRuntime, PyTorchRuntime, compare
from deim_mmdet.models.layers.attention import SelfAttention
from deim_mmdet.models.layers.predictions import Predictions

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from tiny_detectors import tiny_detector
from torch import nn

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@MODELS.register_module()
class PlainDecoder(nn.Module):
    """A decoder as docs/architecture.md says that one is added: no layers, scores and boxes."""

    def __init__(self, num_classes, embed_dims, num_levels):
        super().__init__()
        self.scores = nn.Linear(embed_dims, num_classes)
        self.boxes = nn.Linear(embed_dims, 4)

    def forward(
        self, content, reference_logits, memory, spatial_shapes, attn_mask=None, all_layers=False
    ):
        boxes = (self.boxes(content) + reference_logits).sigmoid()
        return Predictions(scores=self.scores(content)[None], boxes=boxes[None])


def outputs(model):
    with torch.no_grad():
        return model.bbox_head(model.extract_feat(IMAGES))


def assert_same_outputs(fused, model):
    for got, expected in zip(outputs(fused), outputs(model), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('form', [fuse, fuse_for_export])
def test_a_decoder_stays_as_it_is(form):
    model = tiny_detector(denoising=None, neck=True, decoder=dict(type='PlainDecoder')).eval()
    fused = form(model)
    assert type(fused.bbox_head.decoder) is PlainDecoder
    assert_same_outputs(fused, model)


class SilentAttention(SelfAttention):
    """Another kind of attention under the names of ours."""

    def forward(self, positioned, tokens, attn_mask=None):
        return torch.zeros_like(tokens)


@pytest.mark.parametrize('form', [fuse, fuse_for_export])
def test_a_subclass_that_computes_something_else_stays(form):
    model = tiny_detector(denoising=None, neck=True).eval()
    for layer in model.bbox_head.decoder.layers:
        layer.self_attn = SilentAttention(16, 2).eval()
    assert_same_outputs(form(model), model)


def test_attention_in_the_form_for_cpus_is_fused():
    """So a trained model comes: DEIMRunner gives it that form."""
    fused = fuse(optimize_for_cpu(tiny_detector(denoising=None, neck=True)))
    assert any(isinstance(module, FusedSelfAttention) for module in fused.modules())
    assert not any(isinstance(module, SelfAttention) for module in fused.modules())


@pytest.mark.parametrize(
    ('order', 'fusible'),
    [
        (('conv', 'norm', 'act'), True),
        (('act', 'conv', 'norm'), True),
        (('act', 'norm', 'conv'), False),
        (('conv', 'act', 'norm'), False),
    ],
)
def test_a_norm_is_fused_where_it_acts_after_the_convolution(order, fusible):
    model = tiny_detector(denoising=None)
    layer = ConvModule(16, 16, 3, 2, 1, norm_cfg=dict(type='BN'), order=order)
    nn.init.uniform_(layer.bn.weight, 0.5, 2)
    nn.init.uniform_(layer.bn.bias, -1, 1)
    model.backbone.levels[1] = layer
    model.eval()
    fused = fuse(model)
    assert_same_outputs(fused, model)
    assert isinstance(fused.backbone.levels[1].bn, nn.Identity) == fusible


CHANNEL_MAPPER = dict(
    type='ChannelMapper', in_channels=[16, 16], out_channels=16, kernel_size=1, num_outs=2
)


@pytest.mark.parametrize('neck', [CHANNEL_MAPPER, False])
@pytest.mark.parametrize('half', [False, True])
def test_detectors_are_exported_with_a_neck_of_mmdet_and_without_one(neck, half, tmp_path):
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    model = tiny_detector(denoising=None, neck=neck).eval()
    path = export_onnx(model, tmp_path / 'model.onnx', (64, 64), half=half)
    inputs = IMAGES.numpy(), np.array([[64, 64], [640, 480]])
    agreement = compare(
        PyTorchRuntime(DeployedDetector(model))(*inputs), ONNXRuntime(path, 1)(*inputs)
    )
    assert agreement.score < (5e-3 if half else 1e-5)
    with pytest.raises(ValueError, match='divisible by 32'):
        export_onnx(model, tmp_path / 'model.onnx', (60, 64))


def test_the_exported_model_stays_where_it_is(tmp_path):
    """Its copy goes to the CPU."""
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    model = tiny_detector(denoising=None, neck=True).eval()
    with patch.object(model, '_apply', side_effect=AssertionError('moved')):
        export_onnx(model, tmp_path / 'model.onnx', (64, 64))
