"""MMCV's attention on our operator: in MMCV's builder, in MMDetection's transformers, by a hook."""

import logging
from types import SimpleNamespace

from deim_mmdet.ops import FastMultiScaleDeformableAttention, use_fast_deformable_attention

import pytest
import torch
from mmcv.cnn.bricks.transformer import build_attention
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers import DeformableDetrTransformerDecoder, DeformableDetrTransformerEncoder
from mmdet.registry import HOOKS, MODELS
from torch import nn

SHAPES = [(5, 7), (3, 4), (1, 2)]
TOKENS = sum(h * w for h, w in SHAPES)
SETTINGS = dict(embed_dims=32, num_heads=4, num_levels=3, num_points=2, dropout=0.0)


def randomised(module):
    """Offsets and weights that depend on the query, as after training."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def both_kinds(**settings):
    """MMCV's module and ours with the same parameters."""
    theirs = randomised(MultiScaleDeformableAttention(**SETTINGS, **settings))
    ours = MODELS.build(dict(type='FastMultiScaleDeformableAttention', **SETTINGS, **settings))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_same_results(theirs, ours, inputs, **settings):
    """Outputs, and gradients of inputs and parameters."""
    results = []
    for module in (theirs, ours):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        out = module(**leaves, **settings)
        out = out[0] if isinstance(out, tuple) else out
        out.sin().sum().backward()
        parameters = {name: p.grad for name, p in module.named_parameters()}
        results.append(
            (out.detach(), {name: leaf.grad for name, leaf in leaves.items()}, parameters)
        )
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('batch_first', [False, True])
@pytest.mark.parametrize('reference_size', [2, 4])
@pytest.mark.parametrize('value_proj_ratio', [1.0, 0.5])
def test_equals_mmcv(batch_first, reference_size, value_proj_ratio):
    theirs, ours = both_kinds(batch_first=batch_first, value_proj_ratio=value_proj_ratio)
    query, value, position = (torch.randn(2, n, 32) for n in (6, TOKENS, 6))
    if not batch_first:
        query, value, position = (t.transpose(0, 1) for t in (query, value, position))
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 30:40] = True
    settings = dict(
        key_padding_mask=padding,
        reference_points=torch.rand(2, 6, 3, reference_size),
        spatial_shapes=torch.tensor(SHAPES),
    )
    inputs = dict(query=query, value=value, query_pos=position)
    assert_same_results(theirs, ours, inputs, **settings)


def test_query_is_value_and_identity_where_they_are_left_out():
    theirs, ours = both_kinds(batch_first=True)
    settings = dict(
        reference_points=torch.rand(1, TOKENS, 3, 2), spatial_shapes=torch.tensor(SHAPES)
    )
    assert_same_results(theirs, ours, dict(query=torch.randn(1, TOKENS, 32)), **settings)


def test_other_reference_points_are_refused():
    _, ours = both_kinds(batch_first=True)
    with pytest.raises(ValueError, match='2 or 4 numbers, got 3'):
        ours(
            torch.randn(1, TOKENS, 32),
            reference_points=torch.rand(1, TOKENS, 3, 3),
            spatial_shapes=torch.tensor(SHAPES),
        )


def test_mmcv_builds_it_from_a_config():
    """The configs of MMCV's own transformer layers name their attention."""
    built = build_attention(dict(type='FastMultiScaleDeformableAttention', **SETTINGS))
    assert type(built) is FastMultiScaleDeformableAttention


class Transformer(nn.Module):
    """Encoder and decoder of MMDetection's Deformable DETR."""

    def __init__(self):
        super().__init__()
        attention = dict(SETTINGS, batch_first=True)
        ffn = dict(embed_dims=32, feedforward_channels=64, ffn_drop=0.0)
        plain = dict(embed_dims=32, num_heads=4, dropout=0.0, batch_first=True)
        self.encoder = DeformableDetrTransformerEncoder(
            num_layers=2, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)
        )
        self.decoder = DeformableDetrTransformerDecoder(
            num_layers=2,
            return_intermediate=False,
            post_norm_cfg=None,
            layer_cfg=dict(self_attn_cfg=plain, cross_attn_cfg=attention, ffn_cfg=ffn),
        )

    def forward(self, memory, query):
        shapes = torch.tensor(SHAPES)
        common = dict(
            key_padding_mask=None,
            spatial_shapes=shapes,
            level_start_index=None,
            valid_ratios=torch.ones(len(memory), 3, 2),
        )
        memory = self.encoder(memory, query_pos=torch.zeros_like(memory), **common)
        return self.decoder(
            query=query,
            query_pos=torch.zeros_like(query),
            value=memory,
            reference_points=query[..., :2].sigmoid(),
            **common,
        )[0]


def test_transformers_of_mmdetection_give_the_same():
    theirs, ours = randomised(Transformer()), Transformer()
    ours.load_state_dict(theirs.state_dict())
    parameters = dict(ours.named_parameters())
    assert use_fast_deformable_attention(ours) == 4
    assert not any(type(m) is MultiScaleDeformableAttention for m in ours.modules())
    # An optimiser that was made before keeps the parameters it knows.
    assert all(p is parameters[name] for name, p in ours.named_parameters())
    inputs = dict(memory=torch.randn(2, TOKENS, 32), query=torch.randn(2, 6, 32))
    assert_same_results(theirs, ours, inputs)


def test_hooks_mode_and_several_names_of_a_module_are_kept():
    module = randomised(MultiScaleDeformableAttention(**SETTINGS, batch_first=True)).eval()
    model = nn.ModuleDict({'first': module, 'inner': nn.ModuleList([module])})
    outputs = []
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    state = model.state_dict()
    assert use_fast_deformable_attention(model) == 1
    fast = model['first']
    assert fast is model['inner'][0] is module
    assert not fast.training
    assert list(state) == list(model.state_dict())
    settings = dict(
        reference_points=torch.rand(1, TOKENS, 3, 2), spatial_shapes=torch.tensor(SHAPES)
    )
    assert fast(torch.randn(1, TOKENS, 32), **settings) is outputs[0]
    handle.remove()
    fast(torch.randn(1, TOKENS, 32), **settings)
    assert len(outputs) == 1


def test_hook_changes_the_model_of_a_runner_and_no_other():
    hook = HOOKS.build(dict(type='FastDeformableAttentionHook'))
    model, other = Transformer(), Transformer()
    runner = SimpleNamespace(model=model, logger=logging.getLogger('test'))
    # A runner that trains and then tests calls it twice.
    for _ in range(2):
        hook.before_run(runner)
        assert use_fast_deformable_attention(model) == 4
    assert sum(type(m) is MultiScaleDeformableAttention for m in other.modules()) == 4
    with pytest.raises(ValueError, match='no MultiScaleDeformableAttention'):
        hook.before_run(SimpleNamespace(model=nn.Linear(2, 2), logger=runner.logger))
