"""What ``--amp`` makes of a config."""

import functools
import sys
from pathlib import Path

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper

CONFIG = Path(__file__).parents[2] / 'configs' / 'deim_dfine_n.py'
MODULE = 'mmengine.optim.optimizer.amp_optimizer_wrapper'


@pytest.fixture
def config_of(load_tool, monkeypatch):
    """Function (tool, arguments): the config that the tool makes of them."""

    def config_of(tool, *arguments):
        module = load_tool(tool)
        monkeypatch.setattr(sys, 'argv', [tool, str(CONFIG), *map(str, arguments)])
        return module.prepare(module.parse_args())

    return config_of


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Lets mmengine build its wrapper as on a GPU, its scaler at work on the CPU."""
    monkeypatch.setattr(f'{MODULE}.is_cuda_available', lambda: True)
    monkeypatch.setattr(f'{MODULE}.GradScaler', functools.partial(torch.amp.GradScaler, 'cpu'))


@pytest.mark.parametrize(
    ('arguments', 'dtype', 'scaled'),
    [
        (['--amp'], torch.float16, True),
        (['--amp', 'fp16'], torch.float16, True),
        (['--amp', 'bf16'], torch.bfloat16, False),
    ],
)
def test_training(config_of, on_a_gpu, arguments, dtype, scaled):
    options = dict(config_of('train.py', *arguments).optim_wrapper)
    assert options.pop('type') == 'AmpOptimWrapper'
    for part in ('optimizer', 'constructor', 'paramwise_cfg'):
        options.pop(part)
    layer = torch.nn.Linear(1, 1)
    wrapper = AmpOptimWrapper(optimizer=torch.optim.AdamW(layer.parameters()), **options)
    assert wrapper.cast_dtype == dtype
    assert wrapper.loss_scaler.is_enabled() == scaled
    before = layer.weight.detach().clone()
    for _ in range(2):
        wrapper.update_params(layer(torch.ones(1, 1)).sum() * float('inf'))
    # A scale that is dynamic sinks from 65536 with each overflow.
    assert wrapper.loss_scaler.get_scale() == (2**14 if scaled else 1)
    assert torch.equal(layer.weight, before) == scaled


def test_the_option_before_the_config(load_tool, monkeypatch):
    module = load_tool('train.py')
    monkeypatch.setattr(sys, 'argv', ['train.py', '--amp', str(CONFIG)])
    args = module.parse_args()
    assert (args.amp, args.config) == ('fp16', str(CONFIG))


def test_without_it_nothing_changes(config_of):
    wrapper = config_of('train.py').optim_wrapper
    assert wrapper.type == OptimWrapper.__name__
    assert 'dtype' not in wrapper


def test_a_scale_of_the_config_is_kept(config_of):
    options = ['--cfg-options', 'optim_wrapper.loss_scale=512.0']
    assert config_of('train.py', '--amp', *options).optim_wrapper.loss_scale == 512


def test_two_precisions_are_refused(config_of):
    same = config_of('train.py', '--amp', 'bf16', '--cfg-options', 'optim_wrapper.dtype=bfloat16')
    assert same.optim_wrapper.dtype == 'bfloat16'
    with pytest.raises(ValueError, match=r'dtype=bfloat16 and --amp fp16, that is, float16'):
        config_of('train.py', '--amp', '--cfg-options', 'optim_wrapper.dtype=bfloat16')


def test_a_scale_that_bfloat16_would_ignore_is_refused(config_of):
    options = ['--cfg-options', 'optim_wrapper.loss_scale=512.0']
    with pytest.raises(ValueError, match=r'loss_scale=512\.0 and --amp bf16, which has'):
        config_of('train.py', '--amp', 'bf16', *options)


def test_evaluation(config_of, tmp_path):
    weights = tmp_path / 'weights.pth'
    weights.touch()
    assert config_of('test.py', weights, '--amp').test_cfg.fp16
    assert 'fp16' not in config_of('test.py', weights).test_cfg
