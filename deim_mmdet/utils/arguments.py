"""Arguments of constructors: checks that say what was given, and texts of what is kept."""

import inspect
from collections.abc import Sequence
from numbers import Real

from .errors import UserError


def check_range(
    owner: object,
    name: str,
    value: Sequence[float],
    lowest: float = float('-inf'),
    highest: float = float('inf'),
) -> tuple[float, float]:
    """Return ``value`` as a pair (low, high) with lowest <= low <= high <= highest.

    Args:
        owner: The object under construction; its class name heads the message.
        name: Name of the argument.
        value: What was given.
        lowest: Least end.
        highest: Largest end.

    Raises:
        ValueError: If it is anything else.
    """
    valid = (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 2
        and all(_is_number(end) for end in value)
        and lowest <= value[0] <= value[1] <= highest
    )
    if not valid:
        raise UserError(
            f'{type(owner).__name__}: {name} must be a pair (low, high) with '
            f'{lowest:g} <= low <= high <= {highest:g}, got {value!r}'
        )
    return float(value[0]), float(value[1])


def check_number(owner: object, name: str, value: float, lowest: float, highest: float) -> float:
    """Return ``value`` as a float in [lowest, highest]; arguments as of :func:`check_range`.

    Raises:
        ValueError: If it is anything else.
    """
    if not _is_number(value) or not lowest <= value <= highest:
        raise UserError(
            f'{type(owner).__name__}: {name} must be a number in [{lowest:g}, {highest:g}], '
            f'got {value!r}'
        )
    return float(value)


def check_count(owner: object, name: str, value: int, lowest: int = 1) -> int:
    """Return ``value`` as an integer of at least ``lowest``; arguments as of :func:`check_range`.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise UserError(
            f'{type(owner).__name__}: {name} must be an integer of at least {lowest}, got {value!r}'
        )
    return value


def arguments_of(owner: object) -> str:
    """The arguments of an object's constructor, as far as the object keeps them by their names."""
    names = inspect.signature(type(owner)).parameters
    return ', '.join(f'{n}={getattr(owner, n)!r}' for n in names if hasattr(owner, n))


def described(owner: object) -> str:
    """An object as the call of its constructor."""
    return f'{type(owner).__name__}({arguments_of(owner)})'


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
