"""Writing of files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Hidden, and begun unlike anything that is looked for: no pattern for checkpoints matches it.
UNFINISHED = '.tmp-'


@contextmanager
def replaced_when_complete(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, renamed to ``path`` at the end; folders are made.

    A reader sees the old file or the new one, and no half of it, also after a loss of power; where
    writing fails, the old one stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays the last one: writers choose the format by it.
    temporary = path.with_name(f'{UNFINISHED}{os.getpid()}-{path.name}')
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        # Not every network file system can do this for a folder.
        with suppress(OSError):
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: str | Path) -> list[str]:
    """Remove what killed processes left half written in a folder; returns the names."""
    paths = sorted(Path(folder).glob(f'{UNFINISHED}*'))
    for path in paths:
        path.unlink(missing_ok=True)
    return [path.name for path in paths]


def write_text(path: str | Path, text: str) -> None:
    """Replace the file at ``path`` by one that holds ``text``."""
    with replaced_when_complete(path) as temporary:
        temporary.write_text(text)
