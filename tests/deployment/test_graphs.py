"""Recorded functions. On a CPU something else stands in for the graph."""

import copy
import warnings

from deim_mmdet.deployment.graphs import Captured, GraphedFunction

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


class NoHostReads(TorchDispatchMode):
    """Refuses what can't be recorded: reads by the host, and tensors of Python's numbers."""

    refused = {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.lift_fresh.default,
        torch.ops.aten.nonzero.default,
    }

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator in self.refused:
            raise RuntimeError(f'{operator} is not permitted')
        return operator(*args, **(kwargs or {}))


class StandIn:
    """Stands in for a CUDA graph on a CPU: to replay, it runs the function again."""

    def __init__(self):
        self.error, self.shapes = None, []

    def __call__(self, function, inputs):
        self.shapes.append(tuple(inputs[0].shape))
        if self.error is not None:
            raise self.error
        function(*inputs)
        with NoHostReads():
            outputs = function(*inputs)

        def replay():
            for output, value in zip(outputs, function(*inputs), strict=True):
                output.copy_(value)

        return Captured(inputs, outputs, replay)


def double_and_sum(x, y):
    return 2 * x, x + y


def graphed(function=double_and_sum, **options):
    options.setdefault('capture', StandIn())
    return GraphedFunction(
        function, lambda *inputs: tuple(tensor.clone() for tensor in inputs), **options
    )


def test_each_call_computes_from_its_own_inputs_into_its_own_outputs():
    run = graphed()
    first, second = (torch.rand(2, 3, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    one = torch.ones(2, 3)
    outputs = run(first, one)
    kept = [output.clone() for output in outputs]
    assert torch.equal(run(second, first)[1], second + first)
    assert all(map(torch.equal, outputs, kept))
    outputs[0].zero_()
    assert torch.equal(run(first, one)[0], 2 * first)
    assert torch.equal(one, torch.ones(2, 3))
    assert run.capture.shapes == [(2, 3)]


def test_it_may_be_recorded_in_inference_mode_and_replayed_without():
    run = graphed()
    x = torch.ones(1)
    with torch.inference_mode():
        run(x, x)
    assert not run(x, x)[0].is_inference()


def test_the_size_used_least_recently_is_forgotten():
    run = graphed(max_sizes=2)
    for size in (1, 2, 1, 3, 1, 2):
        x = torch.full((size,), float(size))
        assert torch.equal(run(x, x)[1], 2 * x)
    assert run.capture.shapes == [(1,), (2,), (3,), (2,)]


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once():
    run = graphed()
    x = torch.ones(1)
    run(x, x)
    run.capture.error = RuntimeError('operation not permitted\nand more lines')
    two, three = torch.arange(2), torch.arange(3)
    with pytest.warns(UserWarning, match=r'one failed \(operation not permitted\)$'):
        assert torch.equal(run(two, two)[1], 2 * two)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(run(two, two)[1], 2 * two)
        assert torch.equal(run(three, three)[1], 2 * three)
    # The recording that there was is still in use, and no other one is tried.
    assert torch.equal(run(3 * x, x)[0], 6 * x)
    assert run.capture.shapes == [(1,), (2,)]


def test_a_read_by_the_host_cannot_be_recorded():
    reads = [lambda x: (x * x.sum().item(),), lambda x: (x + torch.tensor([1.0]),)]
    for run in map(graphed, reads):
        with pytest.warns(UserWarning, match='runs without CUDA graphs'):
            assert torch.equal(run(torch.ones(2))[0], torch.full((2,), 2.0))


def test_errors_of_the_function_itself_are_its_own():
    def refuse_pairs(x):
        if len(x) == 2:
            raise RuntimeError('not two')
        return (x + 1,)

    run = graphed(refuse_pairs)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(RuntimeError, match='not two'):
            run(torch.zeros(2))
        assert torch.equal(run(torch.zeros(1))[0], torch.ones(1))
    assert run.capture.shapes == [(2,), (1,)]


def test_a_copy_and_a_forgotten_size_are_recorded_anew():
    run = graphed()
    x = torch.ones(1)
    run(x, x)
    copied = copy.deepcopy(run)
    copied(x, x)
    assert copied.capture.shapes == [(1,), (1,)]
    run.forget()
    run(x, x)
    assert run.capture.shapes == [(1,), (1,)]


@on_gpu
def test_cuda_graphs_of_several_sizes_share_memory_and_nothing_else():
    run = GraphedFunction(
        double_and_sum, lambda *inputs: tuple(tensor.clone() for tensor in inputs), max_sizes=2
    )
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for size in (1000, 2000, 1000, 3000, 2000, 1000) * 2:
            x, y = torch.rand(2, size, device='cuda')
            doubled, summed = run(x, y)
            assert torch.equal(doubled, 2 * x)
            assert torch.equal(summed, x + y)


@on_gpu
def test_a_read_by_the_host_cannot_be_recorded_on_a_gpu():
    run = GraphedFunction(lambda x: (x * x.sum().item(),), lambda x: (x.clone(),))
    x = torch.ones(2, device='cuda')
    with pytest.warns(UserWarning, match='runs without CUDA graphs'):
        assert torch.equal(run(x)[0], 2 * x)
    assert torch.equal(run(3 * x)[0], 18 * x)
    # Noise can be drawn as before.
    assert torch.rand(2, device='cuda').isfinite().all()
