"""Measures times on noisy machines: candidates take turns, and results are percentiles."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

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
        milliseconds = np.asarray(seconds) * 1e3
        median, p90, p99 = np.percentile(milliseconds, (50, 90, 99))
        lowest = float(milliseconds.min())
        return cls(float(median), float(p90), float(p99), lowest, len(seconds))


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


def peak_memory(function: Callable[[], object]) -> float | None:
    """MiB that a call needs at its peak beyond what the process holds before; Linux only.

    Other systems give ``None``. Memory that a runtime kept from an earlier call isn't counted.
    """
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
