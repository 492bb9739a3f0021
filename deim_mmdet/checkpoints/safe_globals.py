"""What a checkpoint may hold: tensors, plain containers and mmengine's log history.

From version 2.6 on, ``torch.load`` refuses every type that isn't on a list, because unpickling can
run code. mmengine's checkpoints hold its ``HistoryBuffer`` with numpy arrays. :func:`load` puts
exactly these types on the list while it reads a file. All others stay refused.
"""

import pickle
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from ..utils.errors import CheckpointError

# What torch says of a ZIP file that isn't its own, and of what seems a TAR file: zeros do.
OTHER_ARCHIVES = ('not in a subdirectory', 'legacy .tar format')
HISTORY_STATISTICS = ('min', 'max', 'current', 'mean')


def _history_statistic(owner: type, name: str):
    """Replaces ``getattr`` in a checkpoint, for the four attributes that HistoryBuffer needs.

    A pickled HistoryBuffer refers to its own methods by ``getattr``. The real ``getattr`` would let
    a checkpoint reach any object of the interpreter.
    """
    if owner is HistoryBuffer and name in HISTORY_STATISTICS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'GLOBAL builtins.getattr was not an allowed global for {name!r}')


def _allowed() -> list[tuple[Any, str]]:
    """Types and functions that mmengine's checkpoints hold, each with its name in a file."""
    # numpy renamed its core package in version 2; checkpoints of either must load under either.
    # The first part of what pickle writes for an object is the function that rebuilds it.
    functions = [value.__reduce__()[0] for value in (np.zeros(1), np.float64())]
    rebuild = [
        (function, f'numpy.{package}.multiarray.{function.__name__}')
        for function in functions
        for package in ('core', '_core')
    ]
    dtypes = [type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'bool')]
    # With names: entries that others put on torch's list without names stay when these go.
    types = [
        (kind, f'{kind.__module__}.{kind.__qualname__}')
        for kind in (HistoryBuffer, np.ndarray, np.dtype, *dtypes)
    ]
    return [(_history_statistic, 'builtins.getattr'), *rebuild, *types]


ALLOWED = _allowed()


def load(file: str | Path | BinaryIO, name: str, map_location=None) -> Any:
    """``torch.load`` of a checkpoint; meanwhile mmengine's types are on torch's list.

    Args:
        file: Path, or an open file.
        name: Name of the file in messages.
        map_location: See ``torch.load``.

    Raises:
        RuntimeError: The file is damaged, or holds a type that isn't allowed; the message names the
            file, the refused type where there is one, and the remedy.
    """
    no_checkpoint = f'{name} is no checkpoint, or is damaged: take another file or a new copy of it'
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL |but got <class ')([\w.]+)", str(error))
        if refused is None:
            raise CheckpointError(no_checkpoint) from error
        raise CheckpointError(
            f'checkpoint {name} holds an object of type {refused[1]}, which is refused because '
            'loading it could run code. If you trust the file, take its weights out where you made '
            "it: torch.save({'state_dict': model.state_dict()}, new_file); or put the type on "
            "torch's list yourself with torch.serialization.add_safe_globals"
        ) from None
    except EOFError as error:
        raise CheckpointError(f'checkpoint {name} is empty: take an earlier one') from error
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error) as error:
        # The old format begins with a pickle, and any text may seem one.
        raise CheckpointError(no_checkpoint) from error
    except RuntimeError as error:
        if any(words in str(error) for words in OTHER_ARCHIVES):
            raise CheckpointError(no_checkpoint) from error
        if 'PytorchStreamReader' not in str(error):
            raise
        raise CheckpointError(
            f'checkpoint {name} is damaged or was not written completely; take an earlier one'
        ) from error
