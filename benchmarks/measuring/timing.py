"""Measures times on noisy machines: candidates take turns, and results are percentiles."""

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

_STATUS, _CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')


class Timing(NamedTuple):
    """Percentiles of repeated calls, in milliseconds."""

    median: float
    p90: float
    p99: float
    lowest: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> 'Timing':
        """The percentiles of times in seconds."""
        milliseconds = np.asarray(seconds) * 1e3
        median, p90, p99 = np.percentile(milliseconds, (50, 90, 99))
        lowest = float(milliseconds.min())
        return cls(float(median), float(p90), float(p99), lowest, len(seconds))


class Spans(NamedTuple):
    """Seconds between the marks of a timer, one number for each pair of neighbours.

    Attributes:
        host: Until the host had done or enqueued the work.
        device: Until the device had done it; on a CPU the same.
    """

    host: list[float]
    device: list[float]


class CpuTimer:
    """Takes the time between marks in a program.

    Args:
        cpu_time: Count the time that the process computes, instead of the time that passes.
    """

    def __init__(self, cpu_time: bool = False) -> None:
        self._cpu_time = cpu_time
        self._marks: list[float] = []

    def mark(self) -> None:
        """Note the time; what lies between two marks is a span."""
        self._marks.append(time.process_time() if self._cpu_time else time.perf_counter())

    def read(self) -> Spans:
        """The spans between the marks since the last call."""
        spans = [end - start for start, end in pairwise(self._marks)]
        self._marks.clear()
        return Spans(spans, spans)


class CudaTimer(CpuTimer):
    """Takes the time of host and GPU between marks, and waits for the GPU only when it is read.

    The GPU's time is that between events in its stream. It contains the time that the GPU waits for
    the host: where both times are alike, the host is the limit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)
        super().mark()

    def read(self) -> Spans:
        torch.cuda.synchronize()
        device = [start.elapsed_time(end) / 1e3 for start, end in pairwise(self._events)]
        self._events.clear()
        return Spans(super().read().host, device)


def make_timer(device: str, cpu_time: bool = False) -> CpuTimer:
    """A timer for ``'cpu'`` or ``'cuda'``."""
    return CudaTimer() if device == 'cuda' else CpuTimer(cpu_time)


def alternate(
    candidates: Mapping[str, Callable[[], Sequence[float]]], rounds: int, warm_up: int = 2
) -> dict[str, Timing]:
    """Time candidates in turn, so that other work on the machine disturbs all of them alike.

    Args:
        candidates: By name, functions that do their work several times and return the seconds of
            each time.
        rounds: Number of turns of each candidate that count.
        warm_up: Number of turns of each before these.
    """
    for function in candidates.values():
        for _ in range(warm_up):
            function()
    seconds = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            seconds[name] += function()
    return {name: Timing.of(values) for name, values in seconds.items()}


def peak_memory(function: Callable[[], object], device: str = 'cpu') -> float | None:
    """MiB that a call needs at its peak beyond what is held before.

    On ``'cuda'`` the allocator counts. On a CPU it is the memory of the process, on Linux only:
    other systems give ``None``. Memory that a runtime kept from an earlier call isn't counted
    there.
    """
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        # Freed memory goes back to the system, as far as it can, and the peak starts anew.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text('5')
    except (OSError, AttributeError):
        return None
    before = _status('VmRSS')
    function()
    return max(_status('VmHWM') - before, 0.0)


def _status(key: str) -> float:
    """An entry of the process's status, in MiB."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024
