"""Hooks that compile parts of the model or capture CUDA graphs."""

import contextlib
import copy
import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from deim_mmdet import compat
from deim_mmdet.engine import CompileHook, CUDAGraphHook

import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.logging import MMLogger
from tiny_detectors import tiny_batch, tiny_detector
from torch import nn

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """As much of a runner as the hooks look at."""
    monkeypatch.setenv('DEIM_MMDET_CACHE', str(tmp_path))
    # Set by the hook.
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', '')
    monkeypatch.delenv('TORCHINDUCTOR_CACHE_DIR')
    return SimpleNamespace(
        model=tiny_detector(),
        optim_wrapper=SimpleNamespace(_accumulative_counts=1),
        logger=MMLogger.get_instance('fast steps'),
    )


class Backend:
    """Counts what ``torch.compile`` compiles, and runs it as it is."""

    def __init__(self):
        self.compiled = 0

    def __call__(self, graph, inputs):
        self.compiled += 1
        return graph.forward


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)


@pytest.mark.parametrize('hook', [CompileHook(), CUDAGraphHook()])
def test_other_detectors_are_refused(runner, hook):
    runner.model = nn.Linear(1, 1)
    with pytest.raises(TypeError, match='works on a DEIMDetector, but the model is a Linear'):
        hook.before_train(runner)


def test_graphs_need_cuda(runner, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=r'--cuda-graph\) need a GPU with CUDA'):
        CUDAGraphHook().before_train(runner)
    assert runner.model.graphed is None


def test_graphs_are_refused_for_several_processes(runner, monkeypatch):
    runner.model = nn.DataParallel(runner.model)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    with pytest.raises(ValueError, match='for one process'):
        CUDAGraphHook().before_train(runner)


def test_graphs_are_refused_where_gradients_accumulate(runner, cuda):
    runner.optim_wrapper._accumulative_counts = 2
    with pytest.raises(ValueError, match='do not accumulate gradients'):
        CUDAGraphHook().before_train(runner)


def test_graphs_serve_training_alone(runner, cuda):
    hook = CUDAGraphHook()
    hook.before_train(runner)
    assert runner.model.graphed.capture is compat.capture_cuda_graph
    assert runner.model.bbox_head.denoising.padded
    hook.after_train(runner)
    assert runner.model.graphed is None


@pytest.mark.parametrize('knows_mode', [False, True])
def test_other_threads_may_call_cuda_during_a_capture(monkeypatch, knows_mode):
    """Pinning memory for the next batch neither fails nor ends the capture."""
    modes = []

    class graph:
        def __init__(self, cuda_graph=None, pool=None, capture_error_mode='global'):
            modes.append((capture_error_mode, pool))

    def capture(module, inputs, allow_unused_input=False, pool=None):
        torch.cuda.graph(pool=pool)
        return module

    def newer(module, inputs, allow_unused_input=False, pool=None, capture_error_mode='global'):
        torch.cuda.graph(pool=pool, capture_error_mode=capture_error_mode)
        return module

    monkeypatch.setattr(torch.cuda, 'graph', graph)
    monkeypatch.setattr(torch.cuda, 'make_graphed_callables', newer if knows_mode else capture)
    monkeypatch.setattr(torch.cuda, 'current_device', int)
    monkeypatch.setattr(compat, '_graph_memory', functools.cache(lambda device: (object(), None)))
    monkeypatch.setattr(compat, 'undone_where_capture_fails', contextlib.nullcontext)
    module = nn.Linear(1, 1)
    for _ in range(2):
        assert compat.capture_cuda_graph(module, ()) is module
    assert torch.cuda.graph is graph
    assert [mode for mode, _ in modes] == ['thread_local'] * 2
    assert modes[0][1] is modes[1][1] is not None


def test_a_failed_capture_leaves_stream_and_noise_as_they_were(monkeypatch):
    """With stand-ins for what a GPU has."""
    used = dict(stream='main', noise=7)

    class Generator:
        def clone_state(self):
            return used['noise']

        def graphsafe_set_state(self, noise):
            used['noise'] = noise

    monkeypatch.setattr(torch.cuda, 'default_generators', [Generator()])
    monkeypatch.setattr(torch.cuda, 'current_device', int)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda: used['stream'])
    monkeypatch.setattr(torch.cuda, 'set_stream', lambda stream: used.update(stream=stream))
    monkeypatch.setattr(compat, '_graph_memory', lambda device: (None, None))

    def capture(module, inputs, allow_unused_input, pool, capture_error_mode):
        used.update(stream='of the capture', noise='of the capture')
        raise RuntimeError('not permitted')

    monkeypatch.setattr(torch.cuda, 'make_graphed_callables', capture)
    with pytest.raises(RuntimeError, match='not permitted'):
        compat.capture_cuda_graph(None, ())
    assert used == dict(stream='main', noise=7)


@pytest.mark.slow
def test_parts_are_compiled_once_for_each_size(runner, tmp_path):
    """Backbone and decoder; other numbers of objects compile nothing, nor does evaluation."""
    model, backend = runner.model, Backend()
    plain, names = copy.deepcopy(model), list(model.state_dict())
    hook = CompileHook(backend=backend)
    hook.before_train(runner)
    assert os.environ['TORCHINDUCTOR_CACHE_DIR'] == str(tmp_path / 'compiled')
    for objects in ((3, 1), (0, 0), (7, 2)):
        losses = []
        for each in (plain, model):
            torch.manual_seed(0)
            losses.append(torch.stack([*each.loss(*tiny_batch(objects)).values()]))
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
        assert backend.compiled == 2
    copy.deepcopy(model).loss(*tiny_batch((1, 1), 96))
    hook.before_val(runner)
    model.eval()(tiny_batch((1,), 96)[0])
    hook.after_val(runner)
    assert backend.compiled == 2
    model.train().loss(*tiny_batch((1, 1), 96))
    assert backend.compiled == 4
    assert list(model.state_dict()) == names


@pytest.fixture
def train_tool():
    spec = importlib.util.spec_from_file_location('train_tool', ROOT / 'tools/train.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_options_of_the_training_tool(train_tool, monkeypatch):
    monkeypatch.setattr(train_tool, 'check_gpu_found', lambda *_: None)
    config = str(ROOT / 'configs/deim_dfine_n.py')
    own = [hook.type for hook in Config.fromfile(config).custom_hooks]
    for options, added in (
        ([], []),
        (['--cuda-graph', '--compile'], ['CompileHook', 'CUDAGraphHook']),
    ):
        monkeypatch.setattr(sys, 'argv', ['train.py', config, *options])
        cfg = train_tool.prepare(train_tool.parse_args())
        assert [hook.type for hook in cfg.custom_hooks] == own + added
        assert all(HOOKS.get(name) for name in added)


def test_the_training_tool_needs_a_gpu_for_graphs(train_tool, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(sys, 'argv', ['train.py', 'any.py', '--cuda-graph'])
    with pytest.raises(SystemExit):
        train_tool.parse_args()
    assert '--cuda-graph: torch finds no GPU' in capsys.readouterr().err
