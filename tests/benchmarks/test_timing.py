"""Times and memory of functions that are known."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from measuring.losses import figures, time_losses
from measuring.timing import CpuTimer, Spans, Timing, alternate, make_timer, peak_memory

pytestmark = pytest.mark.slow


def test_percentiles():
    timing = Timing.of([0.001 * value for value in range(1, 101)])
    assert timing.median == pytest.approx(50.5)
    assert timing.p90 == pytest.approx(90.1)
    assert timing.p99 == pytest.approx(99.01)
    assert timing.lowest == pytest.approx(1.0)
    assert timing.rounds == 100


def test_candidates_take_turns_after_warming_up():
    turns = []

    def candidate(name, *seconds):
        def run():
            turns.append(name)
            return seconds

        return run

    timings = alternate(
        dict(a=candidate('a', 1.0), b=candidate('b', 3.0, 5.0)), rounds=3, warm_up=2
    )
    assert turns == [*'aabb', *'ababab']
    assert timings['a'].median == pytest.approx(1000)
    assert timings['b'].median == pytest.approx(4000)
    assert (timings['a'].rounds, timings['b'].rounds) == (3, 6)


def test_peak_memory_of_an_array():
    # One byte a page at least has to be written for the system to provide it.
    needed = peak_memory(lambda: np.ones(64 * 2**20, dtype=np.uint8))
    if needed is None:
        pytest.skip('the peak can be reset on Linux only')
    assert 60 < needed < 80
    assert peak_memory(lambda: None) < 4


@pytest.fixture
def clocks(monkeypatch):
    """Clocks of a host and of its GPU, which begins its work when the host reads or it is idle."""
    now = SimpleNamespace(host=0.0, device=0.0, waits=0)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            now.device = max(now.device, now.host)
            self.at = now.device

        def elapsed_time(self, end):
            return 1e3 * (end.at - self.at)

    def wait():
        now.waits += 1
        now.host = max(now.host, now.device)

    monkeypatch.setattr(time, 'perf_counter', lambda: now.host)
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'synchronize', wait)
    return now


def work(clocks, host, device):
    clocks.host += host
    clocks.device = max(clocks.device, clocks.host) + device


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_host_and_device_are_told_apart(clocks, device):
    timer = make_timer(device)
    for _ in range(2):
        timer.mark()
        work(clocks, 1, 4)
        timer.mark()
        work(clocks, 2, 8)
        timer.mark()
        assert clocks.waits == 0
        # The GPU waits for the first work to be enqueued, not for the second.
        expected = Spans([1, 2], [1, 2] if device == 'cpu' else [5, 8])
        assert timer.read() == expected
        clocks.host, clocks.waits = clocks.host + 100, 0


def test_time_that_the_process_computes(monkeypatch):
    monkeypatch.setattr(time, 'process_time', iter([1.0, 3.0]).__next__)
    timer = CpuTimer(cpu_time=True)
    timer.mark()
    timer.mark()
    assert timer.read() == Spans([2.0], [2.0])


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_losses_take_turns_and_are_compared(clocks, device):
    x = torch.ones(1, requires_grad=True)

    def loss(name, host, gpu):
        def compute():
            order.append(name)
            work(clocks, host, gpu)
            return x.sum()

        return compute

    order = []
    losses = dict(ours=loss('ours', 1, 2), other=loss('other', 2, 7))
    spans = time_losses(losses, 2, make_timer(device))
    assert order == ['ours', 'other'] * 3
    found = figures(spans, device)
    on_device = (1000, 2000) if device == 'cpu' else (3000, 9000)
    assert (found['forward_ours_ms'], found['forward_other_ms']) == on_device
    assert found['with_backward_ratio_to_other'] == on_device[1] / on_device[0]
    assert found.get('host_forward_other_ms') == (None if device == 'cpu' else 2000)


def test_peak_memory_of_the_allocator(monkeypatch):
    held = iter([10 * 2**20])
    calls = []
    for name, function in dict(
        synchronize=lambda: calls.append('wait'),
        reset_peak_memory_stats=lambda: calls.append('reset'),
        memory_allocated=lambda: next(held),
        max_memory_allocated=lambda: 25 * 2**20,
    ).items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert peak_memory(lambda: calls.append('work'), 'cuda') == 15
    assert calls == ['wait', 'reset', 'work', 'wait']
