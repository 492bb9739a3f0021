from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper

from deim_mmdet.engine.hooks import NonFiniteLossError, NonFiniteLossHook
from deim_mmdet.engine.optimizers import CpuAmpOptimWrapper


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.factors = dict(loss_box=1.0, loss_cls=[1.0, 1.0])

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return {
            name: [self.weight * f for f in factor]
            if isinstance(factor, list)
            else self.weight * factor
            for name, factor in self.factors.items()
        }


def step(model, wrapper_type):
    wrapper = wrapper_type(torch.optim.SGD(model.parameters(), lr=0.1))
    samples = [DetDataSample(metainfo=dict(img_path=f'photo_{i}.jpg')) for i in range(2)]
    return model.train_step(dict(inputs=torch.zeros(2), data_samples=samples), wrapper)


@pytest.fixture
def model():
    model = Model()
    hook = NonFiniteLossHook()
    runner = SimpleNamespace(model=model, epoch=2, iter=41)
    hook.before_train(runner)
    yield model
    hook.after_train(runner)
    assert not model._forward_hooks


@pytest.mark.parametrize('wrapper_type', [OptimWrapper, CpuAmpOptimWrapper])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_stops_before_the_weights_change(model, wrapper_type, bad):
    step(model, wrapper_type)
    before = model.weight.detach().clone()
    model.factors['loss_cls'] = [1.0, bad]
    with pytest.raises(NonFiniteLossError) as error:
        step(model, wrapper_type)
    message = str(error.value)
    assert f'loss_cls = {bad}' in message
    assert 'loss_box' not in message
    assert 'photo_0.jpg, photo_1.jpg' in message
    assert 'epoch 3, iteration 42' in message
    assert torch.equal(model.weight, before)


def test_evaluation_is_left_alone(model):
    model.factors['loss_cls'] = float('nan')
    model.eval()
    assert model(torch.zeros(1))['loss_cls'].isnan()
