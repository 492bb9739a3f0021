"""Writing of files, and the folder for what is kept between runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# A hidden name, which no pattern for checkpoints matches.
UNFINISHED = '.tmp-'


def cache_folder() -> Path:
    """``$DEIM_MMDET_CACHE``, by default ``deim_mmdet`` in the user's cache folder."""
    default = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(os.environ.get('DEIM_MMDET_CACHE') or Path(default) / 'deim_mmdet')


@contextmanager
def replaced_when_complete(path: str | Path) -> Iterator[Path]:
    """Context with a temporary path to write to; at the end that file becomes ``path``.

    Missing folders are made. A reader sees the whole old file or the whole new one, even after a
    loss of power. Where writing fails, the old file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, as writers choose the format by it.
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


def remove_unfinished(folder: str | Path) -> None:
    """Remove the half-written files of killed processes from a folder."""
    for path in Path(folder).glob(f'{UNFINISHED}*'):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Replace the file at ``path`` by one that holds ``text``, in UTF-8."""
    with replaced_when_complete(path) as temporary:
        temporary.write_text(text, encoding='utf-8')
