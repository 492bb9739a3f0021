"""A model whose losses and gradients a batch can spoil, and the part of a training around it."""

import copy
import logging

from deim_mmdet.engine.hooks import ExpWarmupEMAHook, NonFiniteLossHook
from deim_mmdet.engine.optimizers import CpuAmpOptimWrapper

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import get_priority
from torch import nn


class Model(BaseModel):
    """Its statistics, losses and gradients depend on the batch; ``fault`` of a batch spoils it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        fault = data_samples[0].get('fault')
        if fault in ('nan', 'inf'):
            inputs = inputs * float(fault)
        box, cls = self.linear(self.norm(inputs)).float().unbind(-1)
        losses = dict(loss_box=box.square().mean(), loss_cls=[cls.abs().mean(), cls.mean()])
        if fault == 'one term':
            losses['loss_cls'] = [losses['loss_cls'][0], cls.sum() * float('nan')]
        if fault == 'loss alone':
            losses['loss_capped'] = cls.sum() * 0 + float('inf')
        if fault == 'gradient':
            # The root of 0 is 0; its derivative is infinite.
            losses['loss_root'] = (self.linear.weight * 0).sum().sqrt()
        return losses


class ScaledOptimWrapper(OptimWrapper):
    """mmengine's ``AmpOptimWrapper``, which asks for CUDA, with its scaler on the CPU."""

    _scale_update_param = None
    backward = AmpOptimWrapper.backward
    step = AmpOptimWrapper.step

    def __init__(self, init_scale=8.0, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale)


class ConstantScaleOptimWrapper(ScaledOptimWrapper):
    """The same with ``loss_scale=8.0``."""

    _scale_update_param = 8.0


def unscaled(loss_scale, dtype):
    """Function that builds mmengine's ``AmpOptimWrapper`` as on a GPU, but with no scaler at work.

    Without a GPU a ``GradScaler`` disables itself.
    """

    def build(**kwargs):
        with pytest.MonkeyPatch.context() as patch:
            module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
            patch.setattr(f'{module}.is_cuda_available', lambda: True)
            patch.setattr(torch.cuda, 'is_available', lambda: False)
            wrapper = AmpOptimWrapper(loss_scale=loss_scale, dtype=dtype, **kwargs)
        assert not wrapper.loss_scaler.is_enabled()
        return wrapper

    return build


UNSCALED = {
    'disabled': unscaled(dict(enabled=False), None),
    'disabled bfloat16': unscaled(dict(enabled=False), 'bfloat16'),
    'without a GPU': unscaled('dynamic', 'bfloat16'),
}
WRAPPERS = {'plain': OptimWrapper, 'CPU': CpuAmpOptimWrapper, **UNSCALED}


def make_batch(index, fault=None, images=4):
    generator = torch.Generator().manual_seed(index)
    samples = [
        DetDataSample(metainfo=dict(img_path=f'photo_{index}_{i}.jpg', fault=fault))
        for i in range(images)
    ]
    return dict(inputs=torch.randn(images, 3, generator=generator), data_samples=samples)


class Training:
    """The part of mmengine's runner that hooks see."""

    def __init__(
        self,
        wrapper_type=OptimWrapper,
        skip=0,
        wrap=lambda model: model,
        fused=None,
        **options,
    ):
        torch.manual_seed(0)
        self.model = wrap(Model())
        parameters = self.model.parameters()
        self.optim_wrapper = wrapper_type(
            optimizer=torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, fused=fused),
            # The wrapper takes the kind of clipping out of what it gets.
            **copy.deepcopy(options),
        )
        self.hooks = [NonFiniteLossHook(skip), ExpWarmupEMAHook(decay=0.9, warmup_iters=2)]
        # As mmengine orders them.
        self.hooks.sort(key=lambda hook: get_priority(hook.priority))
        self.message_hub = MessageHub(f'training_{id(self)}')
        self.optim_wrapper.message_hub = self.message_hub
        self.logger = logging.getLogger('training')
        self.epoch, self.iter, self.max_iters = 2, 40, 100
        for hook in self.hooks:
            hook.before_run(self)
        for hook in self.hooks:
            hook.before_train(self)

    def run(self, batches):
        for index, batch in enumerate(batches):
            for hook in self.hooks:
                hook.before_train_iter(self, index, batch)
            self.outputs = self.model.train_step(batch, self.optim_wrapper)
            for hook in self.hooks:
                hook.after_train_iter(self, index, batch, self.outputs)
            self.iter += 1
        return self

    def state(self):
        """Everything that a step changes, by name."""
        average = self.hooks[1].ema_model.state_dict()
        optimizer = self.optim_wrapper.optimizer.state_dict()['state']
        return {
            **{f'model.{name}': value for name, value in self.model.state_dict().items()},
            **{f'average.{name}': value for name, value in average.items()},
            **{f'{i}.{name}': value for i, s in optimizer.items() for name, value in s.items()},
        }
