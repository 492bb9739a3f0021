"""Fused detectors against those that they were made from."""

from deim_mmdet.deployment import fuse, fuse_for_export
from deim_mmdet.deployment.modules import BoundedLayerNorm, Clamp, SplitBlock, SplitConvolution
from deim_mmdet.models.layers.affine import LearnableAffine
from deim_mmdet.models.layers.conv_norm import FrozenBatchNorm2d
from deim_mmdet.models.layers.vit import LayerScale, MaskedBiasLinear

import pytest
import torch
from golden import build_model, filled_model, image
from torch import nn

# Of each kind of backbone, neck, norm and decoder one: N has learnable affines, X frozen norms and
# decoder and neck of different width, the R50-m trains more decoder layers than it uses. DEIMv2 N
# sums levels, and Pico has the lite neck and a head that all layers share. L has DINOv3, ECDet S
# convolutions in front of a vision transformer.
MODELS = [
    'deim_dfine_n', 'dfine_x', 'rtdetrv2_r18', 'rtdetrv2_r50_m', 'deimv2_n', 'deimv2_pico',
    'deimv2_l', 'ecdet_s',
]  # fmt: skip
SIZE = (192, 256)


def outputs(model, inputs):
    with torch.no_grad():
        return model.bbox_head(model.extract_feat(inputs))


def with_random_statistics(name):
    """The model in double precision, statistics and affines of its norms random."""
    torch.manual_seed(0)
    # The head of the filled ECDet makes rounding a thousand times as large.
    built = name in ('rtdetrv2_r50_m', 'ecdet_s')
    model = build_model(name).double() if built else filled_model(name)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
        if isinstance(module, LearnableAffine):
            module.scale.data.uniform_(-1.0, 1.5, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope='module', params=MODELS)
def model(request):
    return with_random_statistics(request.param)


@pytest.mark.parametrize('function', [fuse, fuse_for_export])
def test_outputs_are_those_of_the_model(model, function):
    inputs = torch.from_numpy(image('fuse', (1, 3, *SIZE)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = function(model)
    for got, expected in zip(outputs(fused, inputs), outputs(model, inputs), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
    # The model itself is as before.
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_single_precision_keeps_detections():
    model = filled_model('deim_dfine_n').float().eval()
    inputs = torch.from_numpy(image('fuse', (1, 3, *SIZE))).float()
    fused = outputs(fuse(model), inputs)
    close = [
        torch.isclose(got, expected, atol=1e-4, rtol=0).all(-1)
        for got, expected in zip(fused, outputs(model, inputs), strict=True)
    ]
    # The rank of a few queries may swap by rounding.
    assert (close[0] & close[1]).float().mean() >= 0.98


def test_nothing_is_left_that_can_be_merged_or_dropped(model):
    fused = fuse(model)
    kinds = {type(module) for module in fused.modules()}
    unwanted = {nn.BatchNorm2d, FrozenBatchNorm2d, LearnableAffine, nn.MultiheadAttention}
    unwanted |= {LayerScale, MaskedBiasLinear}
    assert not kinds & unwanted
    assert fused.bbox_head.denoising is None
    decoder, original = fused.bbox_head.decoder, model.bbox_head.decoder
    used = getattr(original, 'num_eval_layers', len(original.layers))
    assert len(decoder.layers) == used
    assert [any(True for _ in head.parameters()) for head in decoder.score_heads] == [
        i == used - 1 for i in range(used)
    ]
    assert not any(parameter.requires_grad for parameter in fused.parameters())


def test_export_form_splits_the_residual_blocks():
    fused = fuse_for_export(with_random_statistics('dfine_x'))
    # B5: 1, 2, 5 and 2 blocks a stage, all but the first residual.
    assert sum(isinstance(module, SplitBlock) for module in fused.modules()) == 1 + 4 + 1
    assert isinstance(fused.backbone.stem.stem3, SplitConvolution)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_norms_of_the_export_form_read_large_tokens(dtype):
    norm = nn.LayerNorm(8).to(dtype)
    tokens = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens *= 1e4 if dtype is torch.float16 else 1e8
    torch.testing.assert_close(BoundedLayerNorm(norm)(tokens), norm(tokens), rtol=0, atol=0)


def test_a_negative_affine_is_not_split():
    """Bounded from above, a sum isn't what a convolution with ReLU gives."""
    model = with_random_statistics('deim_dfine_n')
    model.backbone.stem.stem3.lab.scale.data.fill_(-0.5)
    fused = fuse_for_export(model)
    assert not isinstance(fused.backbone.stem.stem3, SplitConvolution)
    inputs = torch.from_numpy(image('fuse', (1, 3, *SIZE)))
    for got, expected in zip(outputs(fused, inputs), outputs(model, inputs), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize('scale', [1.5, 0.0, -0.5])
def test_affine_of_any_sign_becomes_a_bound(scale):
    """As the affine is defined: scale * relu(y) + bias."""
    model = filled_model('deim_dfine_n').eval()
    layer = model.backbone.stem.stem1
    with torch.no_grad():
        layer.lab.scale.fill_(scale)
        layer.lab.bias.fill_(0.25)
        fused = fuse(model).backbone.stem.stem1
        inputs = torch.from_numpy(image('affine', (1, 3, 32, 32)))
        expected = scale * layer.bn(layer.conv(inputs)).relu() + 0.25
        torch.testing.assert_close(fused(inputs), expected, atol=1e-12, rtol=0)
    assert isinstance(fused.act, Clamp)


def test_a_fused_model_can_be_run_for_detections_but_not_trained():
    fused = fuse(build_model('deim_dfine_n'))
    assert fused(torch.zeros(1, 3, 64, 64), mode='tensor')[0].shape == (1, 20, 80)
    fused.train()
    with pytest.raises(RuntimeError, match='train the one that it was made from'):
        fused(torch.zeros(1, 3, 64, 64), mode='tensor')


def test_other_detectors_are_refused():
    with pytest.raises(TypeError, match='DFINEHead or RTDETRHead, got Linear'):
        fuse(nn.Linear(1, 1))


def test_positions_and_anchors_are_computed_once_a_size(monkeypatch):
    fused = fuse(build_model('deim_dfine_n'))
    first = outputs(fused, torch.ones(1, 3, 64, 96))
    outputs(fused, torch.ones(1, 3, 96, 64))

    def refuse(*_):
        raise AssertionError('computed again')

    monkeypatch.setattr('deim_mmdet.models.necks.hybrid_encoder.sine_cosine_position', refuse)
    monkeypatch.setattr('deim_mmdet.models.layers.query_selection.make_anchors', refuse)
    again = outputs(fused, torch.ones(1, 3, 64, 96))
    assert torch.equal(first[0], again[0])
    with pytest.raises(AssertionError, match='computed again'):
        outputs(fused, torch.ones(1, 3, 64, 64))


def test_torch_compile_traces_the_whole_net_without_a_break():
    """The backend that only traces: what a compiler makes of the graph is torch's matter."""
    torch._dynamo.reset()
    fused = fuse(build_model('deim_dfine_n'))
    inputs = torch.from_numpy(image('fuse', (1, 3, 64, 96))).float()
    expected = outputs(fused, inputs)
    compiled = torch.compile(
        lambda x: fused.bbox_head(fused.extract_feat(x)), backend='eager', fullgraph=True
    )
    with torch.no_grad():
        got = compiled(inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
