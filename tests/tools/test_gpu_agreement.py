"""Compiled and captured training beside eager training, as far as it goes without a GPU."""

import copy
from types import SimpleNamespace

from deim_mmdet.models.detectors.graphed import GraphedNetwork

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('dev/gpu_agreement.py')


def captured_by(capture):
    """A change that lets a detector train by what ``capture`` makes of it."""

    def change(model):
        model.static_shapes()
        model.graphed = GraphedNetwork(capture)

    return change


def same(module, samples):
    return module


def of_first_weights(module, samples):
    # Says which outputs have a gradient.
    module(*samples)
    return copy.deepcopy(module)


def of_first_images(module, samples):
    return lambda images, *queries: module(samples[0], *queries)


def without_gradients_of_backbone(module, samples):
    def run(images, *queries):
        outputs = module(images, *queries)
        for parameter in module.detector.backbone.parameters():
            parameter.register_hook(torch.zeros_like)
        return outputs

    return run


def test_compiled_training_is_eager_training(tool, capsys):
    tool.agreement(SimpleNamespace(form='compiled', device='cpu'))
    assert '"iterations": 50' in capsys.readouterr().out


def test_limit_is_far_from_rounding(tool):
    def round_otherwise(model):
        for parameter in model.parameters():
            parameter.data *= 1 + (torch.rand_like(parameter) - 0.5) * 2**-22

    for change in (round_otherwise, captured_by(same)):
        figures = tool.compare(change, 'cpu')
        assert 0 < figures['largest_difference'] < tool.LIMIT / 20
    assert figures['first_loss'] != figures['last_loss']


@pytest.mark.parametrize(
    'capture', [of_first_weights, of_first_images, without_gradients_of_backbone]
)
def test_a_wrong_graph_is_found(tool, monkeypatch, capture):
    monkeypatch.setattr(tool, 'put_into', lambda model, form, **_: captured_by(capture)(model))
    with pytest.raises(SystemExit, match='captured training is not eager training: in iteration'):
        tool.agreement(SimpleNamespace(form='captured', device='cpu'))


def test_a_capture_that_fails_is_found(tool):
    def fail(module, samples):
        raise RuntimeError

    with pytest.raises(SystemExit, match='no CUDA graph was captured'):
        tool.compare(captured_by(fail), 'cpu')
