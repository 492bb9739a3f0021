"""Where the compiled operators lie, what they are made of, and whether they may be loaded.

It imports nothing of the package, as ``setup.py`` runs it alone to build them.
"""

import hashlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / 'csrc'
LIBRARY = FOLDER / '_C.so'
# Stands in the library before its tag.
MARK = b'deim_mmdet operators '


def build_tag(torch_version: str) -> str:
    """Tag of a library that is compiled from these sources for a version of torch.

    A C++ library fits only the torch that it was compiled for. With another one it may crash the
    process that loads it.
    """
    digest = hashlib.sha256(torch_version.encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return f'build_{digest.hexdigest()[:16]}'


def load(path: Path = LIBRARY) -> str:
    """Load the compiled operators.

    Returns:
        Why they could not be loaded; empty where they were.
    """
    import torch

    if not path.exists():
        return 'they were not compiled when the package was installed'
    if MARK + build_tag(torch.__version__).encode() not in path.read_bytes():
        return f'{path} was compiled from other sources or for another torch than this'
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f'{path} does not load: {error}'
    return ''
