"""What is private to, or differs between, versions and builds of the libraries beneath.

| what | why |
|---|---|
| operators of MMCV that stand in for missing ones | ``mmcv-lite``, a wheel on PyPI, has none, and |
| | ``mmdet`` imports them everywhere; this package's models need none of them |
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

OPERATORS = 'mmcv._ext'


class MissingOperatorError(RuntimeError):
    """An operator of MMCV is called that this build of MMCV doesn't have."""


def provide_operators() -> bool:
    """Let ``mmcv.ops`` be imported where MMCV has no compiled operators.

    Each of them then raises :class:`MissingOperatorError` when it is called. Operators that are
    there are never replaced. ``import deim_mmdet`` does this before it imports mmdet.

    Returns:
        Whether operators are missing, and stood in for.
    """
    if OPERATORS in sys.modules:
        return isinstance(sys.modules[OPERATORS], _MissingOperators)
    if importlib.util.find_spec(OPERATORS) is not None:
        return False
    sys.modules[OPERATORS] = _MissingOperators(OPERATORS)
    return True


class _MissingOperators(ModuleType):
    """In place of ``mmcv._ext``: has every operator by name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise MissingOperatorError(
                f"MMCV's operator {name} is called, but this MMCV is installed without operators "
                '(mmcv-lite, or built with MMCV_WITH_OPS=0): install mmcv with its operators, '
                'https://mmcv.readthedocs.io/en/2.x/get_started/installation.html'
            )

        return missing
