"""Marks the reads of a GPU's memory that are made on purpose."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def allowed_sync() -> Iterator[None]:
    """Mark a read for which the host has to wait until the GPU has come so far.

    Within it ``torch.cuda.set_sync_debug_mode`` has no effect. So ``tools/dev/check_gpu.sh``, which
    sets it to ``'error'``, finds all other reads of a training iteration. Without a GPU, and where
    no such mode is set, this does nothing.
    """
    mode = torch.cuda.get_sync_debug_mode() if torch.cuda.is_initialized() else 0
    if not mode:
        yield
        return
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
