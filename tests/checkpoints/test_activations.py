"""Weights whose activations differ, or may differ, from the model's."""

import re

from deim_mmdet.checkpoints.activations import activation_warning
from deim_mmdet.checkpoints.architectures import detector
from deim_mmdet.checkpoints.published import published_models

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn


def weights(name):
    return dict(state_dict=dict(detector(published_models()[name].config, 80).shapes))


@pytest.fixture(scope='module')
def models():
    """DEIM-X with SiLU, and D-FINE-X with ReLU and frozen norms, without memory."""
    with torch.device('meta'):
        return {
            name: MODELS.build(detector(published_models()[name].config, 80).config.model)
            for name in ('deim_dfine_x', 'dfine_x')
        }


@pytest.mark.parametrize(
    ('model', 'checkpoint', 'file', 'warning'),
    [
        ('deim_dfine_x', 'dfine_x', 'deim_dfine_x_obj2coco.pth', 'with ReLU, but the .* has SiLU'),
        ('deim_dfine_x', 'dfine_x', 'https://host/dfine_x_coco.pth', 'dfine_x with ReLU'),
        (
            'dfine_x',
            'deim_dfine_x',
            'https://host/?id=1#/deim_dfine_x.pth',
            'SiLU, but the .* ReLU',
        ),
        ('dfine_x', 'deim_dfine_x', 'rtdetrv4_x.pth', 'SiLU, but the .* ReLU'),
        ('deim_dfine_x', 'dfine_x', 'model.safetensors', 'model.safetensors has frozen norms'),
        ('deim_dfine_x', 'deim_dfine_x', 'deim_dfine_x.pth', None),
        ('deim_dfine_x', 'deim_dfine_x', 'rtdetrv4_x.pth', None),
        ('deim_dfine_x', 'deim_dfine_x', 'epoch_3.pth', None),
        ('dfine_x', 'dfine_x', 'deim_dfine_x_obj2coco.pth', None),
        ('dfine_x', 'dfine_x', 'epoch_3.pth', None),
        ('dfine_x', 'deim_dfine_x', 'epoch_3.pth', None),
    ],
)
def test_warning(models, model, checkpoint, file, warning):
    said = activation_warning(models[model], weights(checkpoint), file)
    if warning is None:
        assert said is None
    else:
        assert re.search(warning, said)


def test_other_models_give_none():
    assert (
        activation_warning(nn.Linear(1, 1), dict(weight=torch.ones(1)), 'dfine_x_coco.pth') is None
    )
