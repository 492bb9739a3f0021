"""Parts of messages."""

from collections.abc import Iterable


def some(items: Iterable[str], limit: int = 5) -> str:
    """The first ``limit`` of ``items`` for a message, and how many more there are."""
    items = [str(item) for item in items]
    rest = f' and {len(items) - limit} more' if len(items) > limit else ''
    return ', '.join(items[:limit]) + rest
