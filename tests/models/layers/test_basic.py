"""Convolutions of concatenated features against the steps written out; norms of tokens."""

import weakref

from deim_mmdet.models.backbones.hgnetv2 import HGNetv2
from deim_mmdet.models.layers.basic import RMSNorm, SwiGLU, bounded
from deim_mmdet.models.layers.conv_norm import (
    ConvNorm,
    FrozenBatchNorm2d,
    convolve_and_norm,
    upsampled,
)
from deim_mmdet.models.necks import HybridEncoder, LiteEncoder

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def random_norm(kind: type, channels: int) -> nn.Module:
    norm = kind(channels).double()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    return norm


@pytest.mark.parametrize('widths', [(4,), (4, 2, 3)])
@pytest.mark.parametrize('with_cp', [True, False])
@pytest.mark.parametrize('kind', [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_values_and_gradients_are_those_of_the_steps(widths, kind, with_cp):
    conv = nn.Conv2d(sum(widths), 5, 3, padding=1, bias=False).double()
    norm = random_norm(kind, 5)
    features = [torch.randn(2, c, 8, 6, dtype=torch.double, requires_grad=True) for c in widths]
    inputs = [*features, conv.weight]
    results = []
    for out in (
        convolve_and_norm(conv, norm, features, with_cp),
        norm(conv(torch.cat(features, dim=1))),
    ):
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        torch.testing.assert_close(convolve_and_norm(conv, norm, features), results[1][0])


@pytest.mark.parametrize('with_cp', [True, False])
def test_training_keeps_no_concatenation_where_it_is_told(with_cp):
    conv, norm = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)
    features = [torch.randn(1, 6, 8, 8, requires_grad=True) for _ in range(2)]
    node = convolve_and_norm(conv, norm, features, with_cp).grad_fn
    while 'Convolution' not in node.name():
        ((node, _), *_) = node.next_functions
    # What is kept is the same tensor each time.
    once, again = node._saved_input, node._saved_input
    torch.testing.assert_close(once, torch.cat(features, dim=1), rtol=0, atol=0)
    assert (once.data_ptr() != again.data_ptr()) == with_cp


@pytest.mark.parametrize('change', [None, 'source', 'result'])
@pytest.mark.parametrize('with_cp', [True, False])
def test_upsampled_features_are_made_again_where_it_is_told(with_cp, change):
    conv, norm = nn.Conv2d(5, 4, 1, bias=False).double(), random_norm(nn.BatchNorm2d, 4)
    small = torch.randn(2, 3, 4, 3, dtype=torch.double, requires_grad=True)
    other = torch.randn(2, 2, 8, 6, dtype=torch.double, requires_grad=True)
    source = small * 1
    large = upsampled(source)
    plain = F.interpolate(small, scale_factor=2, mode='nearest')
    assert torch.equal(large, plain)
    # Afterwards the same would not be made again.
    if change == 'source':
        source.mul_(2)
    if change == 'result':
        large.mul_(2)
        plain = 2 * plain
    storage = weakref.ref(large.untyped_storage())
    out = convolve_and_norm(conv, norm, [large, other], with_cp)
    del large
    # Without with_cp the concatenation is kept, and no part of it.
    assert (storage() is None) == (not with_cp or change is None)
    expected = norm(conv(torch.cat([plain, other], dim=1)))
    inputs = [small, other, conv.weight]
    for got, truth in zip(
        torch.autograd.grad(out.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, truth)


@pytest.mark.parametrize('changed', ['feature', 'weight'])
@pytest.mark.parametrize('with_cp', [True, False])
def test_what_is_changed_in_place_before_the_backward_pass_is_an_error(changed, with_cp):
    conv, norm = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)
    features = [torch.randn(1, 6, 8, 8, requires_grad=True) * 1 for _ in range(2)]
    out = convolve_and_norm(conv, norm, features, with_cp)
    with torch.no_grad():
        (features[0] if changed == 'feature' else conv.weight).mul_(3)
    if changed == 'feature' and not with_cp:
        # The concatenation is a copy.
        out.sum().backward()
        return
    with pytest.raises(RuntimeError, match=r'in.?place'):
        out.sum().backward()


def test_without_gradients_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(
        torch.autograd.graph, 'saved_tensors_hooks', lambda *_: pytest.fail('hooks are set')
    )
    conv, norm = nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2).eval()
    features = [torch.randn(3, 2, 5, 5) for _ in range(2)]
    with torch.no_grad():
        expected = convolve_and_norm(conv, norm, features)
    by_image = torch.func.vmap(
        lambda *parts: convolve_and_norm(conv, norm, [part[None] for part in parts])[0]
    )
    torch.testing.assert_close(by_image(*features), expected)


@pytest.mark.parametrize('kind', ['backbone', 'neck'])
def test_networks_hand_the_switch_to_their_layers(kind):
    def build(**options):
        if kind == 'neck':
            return HybridEncoder([8, 8], feat_strides=[16, 32], out_channels=8, **options)
        return HGNetv2('B0', **options)

    for with_cp in (None, True, False):
        network = build() if with_cp is None else build(with_cp=with_cp)
        layers = [m for m in network.modules() if isinstance(m, ConvNorm)]
        assert layers
        assert all(layer.with_cp is (with_cp is not False) for layer in layers)


def test_rms_norm_is_torchs():
    norm, other = RMSNorm(6).double(), nn.RMSNorm(6, eps=1e-6).double()
    nn.init.normal_(norm.scale)
    other.weight.data.copy_(norm.scale)
    tokens = torch.randn(2, 5, 6, dtype=torch.double, requires_grad=True)
    outputs = norm(tokens), other(tokens)
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad(out.square().sum(), tokens)[0] for out in outputs]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_rms_norm_of_half_precision_sums_in_single(half):
    """The squares are beyond what float16 holds."""
    norm, tokens = RMSNorm(6).to(half), torch.full((1, 6), 1000.0, dtype=half)
    assert norm(tokens).dtype == half
    assert (norm(tokens) == 1).all()


def test_swiglu_is_torchs_gated_unit_with_silu():
    x = torch.randn(3, 8, dtype=torch.double)
    # F.glu(y) = first half · sigmoid(second half)
    first, second = x.chunk(2, dim=-1)
    expected = nn.functional.glu(torch.cat([first * second, first], dim=-1))
    torch.testing.assert_close(SwiGLU()(x), expected)


def test_lite_encoder_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r'takes one level.*in_channels=\[8, 8\]'):
        LiteEncoder([8, 8], out_channels=8)
    with pytest.raises(ValueError, match=r'takes one level.*feat_strides=\(8, 32\)'):
        LiteEncoder([8], feat_strides=(8, 32), out_channels=8)
    neck = LiteEncoder([8], out_channels=16).eval()
    assert [feat.shape for feat in neck([torch.zeros(1, 8, 6, 4)])] == [
        (1, 16, 6, 4),
        (1, 16, 3, 2),
    ]
    with pytest.raises(ValueError, match='about 64x80 pixels is not divisible by 32'):
        neck([torch.zeros(1, 8, 5, 4)])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(feat_strides=(8, 32)), r'double from level to level.*got \[8, 32\]'),
        (dict(feat_strides=(32, 16)), r'double from level to level.*got \[32, 16\]'),
        (dict(out_channels=36), 'got out_channels=36, num_heads=8'),
        (dict(out_channels=34, num_heads=2), 'got out_channels=34, num_heads=2'),
    ],
)
def test_hybrid_encoder_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        HybridEncoder([8, 8], **(dict(feat_strides=(16, 32)) | options))


@pytest.mark.parametrize(('kind', 'layers'), [('deimv2', 1), ('deimv2_n', 2)])
def test_deimv2_projects_only_levels_of_another_width(kind, layers):
    """Branches of N end with a convolution; ECDet has SiLU in the transformer layer."""
    neck = HybridEncoder([16, 8], feat_strides=[16, 32], out_channels=8, kind=kind, act='SiLU')
    assert [type(layer) for layer in neck.input_proj] == [ConvNorm, nn.Identity]
    assert isinstance(neck.encoder.act, nn.SiLU)
    assert len(neck.fpn_blocks[0].cv2) == layers


def test_bounded_numbers_are_those_of_clamp_and_only_the_result_is_kept():
    x = torch.tensor([-3.0, -2.0, -1.0, 0.5, 2.0, 5.0, float('nan')], dtype=torch.double)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    made = [each * 1 for each in inputs]
    storage = weakref.ref(made[0].untyped_storage())
    out, expected = bounded(made[0], 2), F.hardtanh(made[1], -2, 2)
    made.clear()
    assert storage() is None
    weights = torch.arange(1.0, 8.0, dtype=torch.double)
    for result in (out, expected):
        (result * weights).sum().backward()
    torch.testing.assert_close(out, x.clamp(-2, 2), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=0, equal_nan=True)
    assert inputs[0].grad[:6].tolist() == [0, 0, 3, 4, 0, 0]
    # Also for one of several, and without gradients.
    by_row = torch.func.vmap(torch.func.grad(lambda row: (bounded(row, 2) ** 2).sum()))
    rows = torch.tensor([[1.0, 3.0], [-0.5, -4.0]])
    assert by_row(rows).tolist() == [[2, 0], [-1, 0]]
    assert torch.equal(bounded(rows, 2), rows.clamp(-2, 2))
