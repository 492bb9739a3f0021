"""What tests with many mutated files share: how many they try, and a limit of time for each."""

import os
import signal
from contextlib import contextmanager


def fuzz_count(usual: int, full: int) -> int:
    """Number of mutated files: ``full`` where the environment has ``DEIM_MMDET_FUZZ=full``."""
    return full if os.environ.get('DEIM_MMDET_FUZZ') == 'full' else usual


@contextmanager
def time_limit(seconds: float):
    """Raise TimeoutError in this thread where what is inside takes longer, in time of the CPU.

    Time on the clock passes on a busy machine too.
    """

    def stop(number, frame):
        raise TimeoutError(f'takes more than {seconds} s of the CPU')

    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
