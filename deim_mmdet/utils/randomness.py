"""Randomness that is derived from numbers.

An ordinary generator depends on all that this process has drawn before. A generator that is seeded
anew from (seed, purpose, position) gives the same numbers wherever and whenever it is asked.
Nothing about it has to be saved.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What the derived numbers are for. At equal positions, each purpose has its own numbers."""

    #: A sample, whichever process makes it.
    SAMPLE = 0
    #: An iteration in one process.
    ITERATION = 1
    #: An iteration in all processes alike.
    JOINT_ITERATION = 2


def derived_seed(seed: int, purpose: Purpose, *position: int) -> int:
    """A seed of 64 bits for a separate generator; arguments as of :func:`seed_process`."""
    (word,) = np.random.SeedSequence([seed, purpose, *position]).generate_state(1, np.uint64)
    return int(word)


def seed_process(seed: int, purpose: Purpose, *position: int) -> None:
    """Seed the generators of Python, numpy and torch, those of torch on all devices.

    Args:
        seed: Seed of the training, not negative.
        purpose: What is drawn.
        position: Where in the training, e.g. iteration and rank; not negative.
    """
    torch.manual_seed(_seed_python_and_numpy(seed, purpose, *position))


@contextmanager
def seeded(seed: int, purpose: Purpose, *position: int) -> Iterator[None]:
    """Context with the CPU's generators seeded as by :func:`seed_process`; it restores them.

    It leaves other devices alone. Samples are made on the CPU, and asking a driver for a
    generator's state would cost more than the sample.
    """
    states = random.getstate(), torch.get_rng_state()
    # Saving and restoring numpy's state would take several times as long.
    generator = np.random.get_bit_generator()
    np.random.set_bit_generator(_OTHER_GENERATOR)
    torch.default_generator.manual_seed(_seed_python_and_numpy(seed, purpose, *position))
    try:
        yield
    finally:
        np.random.set_bit_generator(generator)
        random.setstate(states[0])
        torch.set_rng_state(states[1])


_OTHER_GENERATOR = np.random.MT19937()


def _seed_python_and_numpy(seed: int, purpose: Purpose, *position: int) -> int:
    """Seed both; returns a seed for torch."""
    words = np.random.SeedSequence([seed, purpose, *position]).generate_state(8)
    np.random.seed(words[:4])
    for_python, for_torch = words[4:].view(np.uint64).tolist()
    random.seed(for_python)
    return for_torch
