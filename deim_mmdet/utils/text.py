"""Parts of messages."""

from collections.abc import Iterable


def some(items: Iterable[str], limit: int = 5) -> str:
    """The first few of ``items``, for a message."""
    items = [str(item) for item in items]
    rest = f' and {len(items) - limit} more' if len(items) > limit else ''
    return ', '.join(items[:limit]) + rest
