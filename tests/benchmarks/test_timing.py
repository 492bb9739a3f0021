"""Times and memory of functions that are known."""

import numpy as np
import pytest
from measuring.timing import Timing, alternate, peak_memory

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
