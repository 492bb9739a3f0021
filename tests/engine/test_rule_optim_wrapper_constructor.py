import re

from deim_mmdet.engine.optimizers import RuleOptimWrapperConstructor

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from schedules import DFINE_MODELS, schedule
from torch import nn


def model_of_names(names: list[str], frozen: list[str]) -> nn.Module:
    """A module tree with parameters of these names; layers called norm… or bn are norms."""
    root = nn.Module()
    for full_name in [*names, *frozen]:
        *path, name = full_name.split('.')
        module = root
        for index, part in enumerate(path):
            if part not in dict(module.named_children()):
                leaf = index == len(path) - 1
                norm = leaf and re.fullmatch(r'(norm\d*|bn)', part)
                module.add_module(part, nn.LayerNorm(1) if norm else nn.Module())
            module = getattr(module, part)
        parameter = nn.Parameter(torch.zeros(1), requires_grad=full_name not in frozen)
        setattr(module, name, parameter)
    return root


def rules_of(model: str) -> list[dict]:
    """The rules that the configs use, written down here on their own."""
    rate = dict(n=0.5, s=0.5, m=0.1, l=0.05, x=0.01)[model[-1]]
    backbone = dict(name=r'^backbone\.', lr_mult=rate)
    norm = dict(kind='norm', decay_mult=0.0)
    bias = dict(kind='bias', decay_mult=0.0)
    if model in ('deim_dfine_s', 'deim_dfine_m'):
        return [norm, backbone]
    if model[-1] in 'lx':
        return [backbone, norm]
    return [backbone, norm, bias]


@pytest.mark.parametrize('model', DFINE_MODELS)
def test_every_parameter_has_its_published_rate_and_decay(model):
    golden = schedule(model)
    network = model_of_names(list(golden['params']), golden['frozen'])
    config = dict(
        type='OptimWrapper',
        optimizer=dict(
            type='AdamW',
            lr=golden['optimizer']['lr'],
            weight_decay=golden['optimizer']['weight_decay'],
        ),
        clip_grad=dict(max_norm=golden['clip_max_norm'], norm_type=2),
        constructor='RuleOptimWrapperConstructor',
        paramwise_cfg=dict(rules=rules_of(model)),
    )
    optimizer = build_optim_wrapper(network, config).optimizer
    assert len(optimizer.param_groups) == len(
        {(p['lr'], p['weight_decay']) for p in golden['params'].values()}
    )
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    parameters = dict(network.named_parameters())
    assert len(groups) == len(golden['params'])
    for name, expected in golden['params'].items():
        group = groups[id(parameters[name])]
        assert group['lr'] == pytest.approx(expected['lr'], rel=1e-9), name
        assert group['weight_decay'] == pytest.approx(expected['weight_decay'], rel=1e-9), name
    for name in golden['frozen']:
        assert id(parameters[name]) not in groups


def small_model():
    return nn.ModuleDict(
        dict(
            conv=nn.Conv2d(1, 1, 1),
            batch_norm=nn.BatchNorm2d(1),
            attention=nn.MultiheadAttention(2, 1),
        )
    )


def build(rules):
    return RuleOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=1.0)),
        dict(rules=rules),
    )


def test_kinds_come_from_modules_not_names():
    model = small_model()
    groups = build([dict(kind='norm', decay_mult=0), dict(kind='bias', lr_mult=2)]).param_groups(
        model
    )
    by_numbers = {(g['lr'], g['weight_decay']): len(g['params']) for g in groups}
    # conv, in_proj, out_proj weights; their biases; the norm's two.
    assert by_numbers == {(1.0, 1.0): 3, (2.0, 1.0): 3, (1.0, 0.0): 2}


def test_first_rule_wins():
    groups = build([dict(name='^conv', lr_mult=3), dict(kind='bias', lr_mult=2)]).param_groups(
        small_model()
    )
    assert {g['lr']: len(g['params']) for g in groups} == {3.0: 2, 1.0: 4, 2.0: 2}


@pytest.mark.parametrize(
    'rules',
    [[dict(name='backbnoe', lr_mult=0.1)], [dict(name='conv'), dict(name='^conv', kind='bias')]],
    ids=['misspelt', 'shadowed'],
)
def test_rule_without_effect_is_an_error(rules):
    with pytest.raises(ValueError, match=re.escape(str(rules[-1]))):
        build(rules).param_groups(small_model())


@pytest.mark.parametrize(
    'rule', [dict(lr=1), dict(kind='scale'), dict(name='(')], ids=['key', 'kind', 'pattern']
)
def test_malformed_rule(rule):
    with pytest.raises(ValueError, match='paramwise_cfg'):
        build([rule])
