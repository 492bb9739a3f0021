import contextlib
import random

from deim_mmdet.utils.randomness import Purpose, seed_process, seeded

import numpy as np
import pytest
import torch


def draws():
    """Numbers of all three generators."""
    return (
        [random.random() for _ in range(4)],
        np.random.rand(4).tolist(),
        np.random.randint(1 << 30, size=4).tolist(),
        torch.rand(4).tolist(),
    )


def of(*key):
    seed_process(*key)
    return draws()


def test_numbers_follow_from_the_key_alone():
    first = of(3, Purpose.SAMPLE, 1, 2)
    draws()
    assert of(3, Purpose.SAMPLE, 1, 2) == first
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    with seeded(3, Purpose.SAMPLE, 1, 2):
        assert draws() == first


@pytest.mark.parametrize(
    'other',
    [
        (4, Purpose.SAMPLE, 1, 2),
        (3, Purpose.ITERATION, 1, 2),
        (3, Purpose.SAMPLE, 2, 1),
        (3, Purpose.SAMPLE, 1, 3),
        (3, Purpose.SAMPLE, 1, 2 + (1 << 32)),
    ],
)
def test_every_part_of_the_key_counts_for_every_generator(other):
    ours, theirs = of(3, Purpose.SAMPLE, 1, 2), of(*other)
    assert all(a != b for a, b in zip(ours, theirs, strict=True))


def test_neighbouring_positions_are_independent():
    """Means over positions are those of independent numbers, in each generator."""
    first, second = [], []
    for position in range(4000):
        with seeded(0, Purpose.SAMPLE, 0, position):
            first.append([random.random(), np.random.rand(), float(torch.rand(()))])
            second.append([random.random(), np.random.rand(), float(torch.rand(()))])
    first, second = np.array(first), np.array(second)
    bound = 5 / np.sqrt(12 * 4000)
    assert np.abs(first.mean(axis=0) - 0.5).max() < bound
    together = np.concatenate([first[1:], first[:-1], second[1:]], axis=1)
    correlations = np.corrcoef(together.T) - np.eye(9)
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_generators_go_on_behind_it_as_if_it_were_not_there():
    expected = of(1, Purpose.ITERATION, 5)
    seed_process(1, Purpose.ITERATION, 5)
    with contextlib.suppress(KeyError), seeded(3, Purpose.SAMPLE, 1):
        draws()
        raise KeyError
    assert draws() == expected
