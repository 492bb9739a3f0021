"""Bounds for the errors of half precision."""

import math

import pytest
import torch
from torch import nn

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('dev/gpu_precision.py')


@pytest.fixture
def errors(tool):
    """Errors that are just within all bounds."""
    found = {('ours', dtype, 'losses'): limit for dtype, limit in tool.LOSSES.items()}
    for part in tool.PARTS:
        found['ours', torch.float32, part] = tool.SINGLE
        for dtype in HALVES:
            found['ours', dtype, part] = 0.22
            found['reference', dtype, part] = 0.2 + 1e-9
            found['rounded', dtype, part] = 0.11
    return found


@pytest.mark.parametrize('value', [1.02, math.nan])
def test_each_error_is_bounded(tool, errors, value):
    assert tool.beyond_bounds(errors) == []
    for key in [key for key in errors if key[0] == 'ours']:
        failures = tool.beyond_bounds({**errors, key: errors[key] * value})
        assert failures
        assert all(f'{key[2]} in {key[1]}' in line for line in failures)


def test_without_the_reference_rounded_weights_are_the_bound(tool, errors):
    alone = {key: error for key, error in errors.items() if key[0] != 'reference'}
    assert tool.beyond_bounds(alone) == []
    # As if the gradient were lost.
    (failure,) = tool.beyond_bounds({**alone, ('ours', torch.float16, 'neck'): 1.0})
    assert failure.startswith('neck in torch.float16, 1 instead of 0.22')


@pytest.mark.parametrize('half', HALVES)
def test_weights_of_products_are_rounded_for_a_while(tool, half):
    model = nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)).double()
    before = [parameter.clone() for parameter in model.parameters()]
    with tool.rounded_weights(model, half):
        assert torch.is_grad_enabled()
        rounded = [parameter.clone() for parameter in model.parameters()]
    assert torch.equal(rounded[0], before[0].to(half).double())
    assert not torch.equal(rounded[0], before[0])
    assert all(map(torch.equal, rounded[1:], before[1:]))
    assert all(map(torch.equal, model.parameters(), before))
