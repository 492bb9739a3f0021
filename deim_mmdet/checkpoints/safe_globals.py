"""What a checkpoint may hold: tensors, plain containers and mmengine's log history.

From version 2.6 on ``torch.load`` refuses every type that isn't on a list, because unpickling can
run code. mmengine's checkpoints hold its ``HistoryBuffer`` with numpy arrays; importing this module
puts exactly these on the list, for ``torch.load`` anywhere in the process. Any other type stays
refused.
"""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

HISTORY_STATISTICS = ('min', 'max', 'current', 'mean')


def _history_statistic(owner: type, name: str):
    """Stands for ``getattr`` in a checkpoint, for the four attributes that HistoryBuffer needs.

    A pickled HistoryBuffer refers to its own methods by ``getattr``. Admitting the real one would
    give a checkpoint a way to any object of the interpreter.
    """
    if owner is HistoryBuffer and name in HISTORY_STATISTICS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'GLOBAL builtins.getattr was not an allowed global for {name!r}')


def register_safe_globals() -> None:
    """Put the types of mmengine's checkpoints on ``torch.load``'s list."""
    # numpy renamed its core package in version 2; checkpoints of either must load under either.
    # The first of what pickle writes of an object is the function that makes it again.
    functions = [value.__reduce__()[0] for value in (np.zeros(1), np.float64())]
    rebuild = [
        (function, f'numpy.{package}.multiarray.{function.__name__}')
        for function in functions
        for package in ('core', '_core')
    ]
    dtypes = [type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'bool')]
    # With their names: onedl-mmengine's loader puts some on the list itself, without names, and
    # takes those off when it is done.
    types = [
        (kind, f'{kind.__module__}.{kind.__qualname__}')
        for kind in (HistoryBuffer, np.ndarray, np.dtype, *dtypes)
    ]
    torch.serialization.add_safe_globals(
        [(_history_statistic, 'builtins.getattr'), *rebuild, *types]
    )


@contextmanager
def explain_load_errors(filename: str) -> Iterator[None]:
    """Turn what ``torch.load`` raises for a refused or damaged file into one clear message.

    Raises:
        RuntimeError: Names the file, the refused type where there is one, and the remedy.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL |but got <class ')([\w.]+)", str(error))
        if refused is None:
            raise RuntimeError(f'{filename} is no checkpoint, or is damaged') from error
        raise RuntimeError(
            f'checkpoint {filename} holds an object of type {refused[1]}, which is refused because '
            'loading it could run code. If you trust the file, take its weights out where you made '
            "it: torch.save({'state_dict': model.state_dict()}, new_file); or put the type on "
            "torch's list yourself with torch.serialization.add_safe_globals"
        ) from None
    except EOFError as error:
        raise RuntimeError(f'checkpoint {filename} is empty') from error
    except RuntimeError as error:
        if 'PytorchStreamReader' not in str(error):
            raise
        raise RuntimeError(
            f'checkpoint {filename} is damaged or was not written completely; take an earlier one'
        ) from error


register_safe_globals()
