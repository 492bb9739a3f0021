"""Weights that are cast all at once, against autocast, which casts each by itself."""

import contextlib

import pytest
import torch
from golden import build_model
from tiny_detectors import tiny_batch
from torch import nn

# Frozen norms have L and R50; ViTs and shared heads have those of DEIMv2 and ECDet.
MODELS = [
    'dfine_n', 'dfine_l', 'rtdetrv2_r18', 'rtdetrv2_r50', 'deimv2_pico', 'deimv2_s', 'ecdet_s',
]  # fmt: skip


@contextlib.contextmanager
def lending(model, dtype, lend):
    lent = model._half_weights(dtype) if lend else contextlib.nullcontext()
    with torch.autocast('cpu', dtype), lent:
        yield


def step(model, dtype, lend):
    """Losses and gradients of a step, by name."""
    images, samples = tiny_batch([2, 3], size=64)
    for sample in samples:
        sample.gt_instances.labels %= model.bbox_head.num_classes
    torch.manual_seed(0)
    model.zero_grad()
    with lending(model, dtype, lend):
        losses = model.loss(images, samples)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name', MODELS)
def test_losses_and_gradients_are_those_of_autocast(name, dtype):
    torch.manual_seed(0)
    model = build_model(name).train()
    for norm in model.modules():
        if hasattr(norm, 'running_var'):
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.running_mean, std=0.1)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    losses, gradients = step(model, dtype, lend=False)
    model.load_state_dict(state)
    lent_losses, lent_gradients = step(model, dtype, lend=True)
    assert lent_gradients.keys() == gradients.keys()
    for expected, found in ((losses, lent_losses), (gradients, lent_gradients)):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=0, msg=key, equal_nan=True)
            assert found[key].dtype == torch.float32
