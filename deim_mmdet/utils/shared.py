"""Numbers in shared memory, through which worker processes learn of a change."""

import torch


class SharedIntegers:
    """Integers in shared memory, as many as it is made with.

    Persistent workers of a data loader keep the objects that they were started with. What is set
    in shared memory reaches them without a restart.

    Args:
        values: The numbers at first.
    """

    def __init__(self, *values: int) -> None:
        self._values = torch.tensor(values, dtype=torch.int64).share_memory_()

    def get(self) -> list[int]:
        """The numbers as they are now, in any process."""
        return self._values.tolist()

    def set(self, *values: int) -> None:
        """Replace all numbers, for all processes."""
        self._values.copy_(torch.tensor(values))
