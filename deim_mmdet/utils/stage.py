"""The four stages of the Dense O2O schedule."""

from enum import IntEnum


class Stage(IntEnum):
    """Stage of training, in order (DEIM, section 3 and the reference recipes).

    Three boundaries ``(t1, t2, t3)`` in epochs part them: warm-up is [0, t1), dense [t1, t2), flat
    [t2, t3) and no-augmentation [t3, end).
    """

    WARM_UP = 0
    DENSE = 1
    FLAT = 2
    NO_AUG = 3

    @property
    def label(self) -> str:
        """Name for logs and plots, e.g. ``no-augmentation``."""
        return ('warm-up', 'dense', 'flat', 'no-augmentation')[self]

    @classmethod
    def at_epoch(cls, epoch: int, boundaries: tuple[int, int, int]) -> 'Stage':
        """Stage of the 0-based ``epoch``, given the boundaries ``(t1, t2, t3)`` in epochs."""
        return cls(sum(epoch >= boundary for boundary in boundaries))
