"""Reads and writes checkpoint files; none of them can run code."""

import hashlib
import zipfile
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_local_rank

from ..utils.errors import CheckpointError
from ..utils.files import replaced_when_complete
from .safe_globals import load

SAFETENSORS = '.safetensors'


def is_url(filename: str | Path) -> bool:
    """Whether ``filename`` is an address that can be downloaded."""
    return str(filename).startswith(('https://', 'http://'))


def file_name(filename: str | Path) -> str:
    """Last part of a path or an address, or of the address's fragment (after ``#``) if it has one.

    Addresses that end in a query (``…/download?id=…#/name.pth``) give the name in the fragment,
    which isn't sent to the server.
    """
    if not is_url(filename):
        return Path(filename).name
    address = urlparse(str(filename))
    return Path(address.fragment or address.path).name


def local_path(filename: str | Path) -> Path:
    """Path of a checkpoint's file, also where ``filename`` is a folder of transformers.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = Path(filename).expanduser()
    if path.is_dir():
        path = path / f'model{SAFETENSORS}'
    if not path.is_file():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    return path


def read_checkpoint(filename: str | Path, map_location='cpu') -> dict:
    """Content of a checkpoint file.

    Args:
        filename: Path of a file that ``torch.save`` wrote; it may hold only tensors, plain
            containers and the types of :mod:`.safe_globals`. Or path of a ``.safetensors`` file;
            folder that ``save_pretrained`` of transformers wrote; or ``https://`` address of a
            file, which is downloaded once to torch's hub folder.
        map_location: See ``torch.load``.

    Raises:
        FileNotFoundError: There is no such file.
        RuntimeError: The file can't be downloaded, is damaged, holds no dictionary or a type that
            isn't allowed. Or it is a safetensors file, and that package isn't installed.
    """
    path = local_path(download(str(filename)) if is_url(filename) else filename)
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path, map_location or 'cpu')
    checkpoint = load(path, str(filename), map_location)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'{filename} holds a {type(checkpoint).__name__}, not a checkpoint: it must hold a '
            'dictionary with parameters'
        )
    return checkpoint


def find_damage(path: str | Path) -> str | None:
    """What is wrong with a file that ``torch.save`` wrote; None where every byte is as written.

    ``torch.load`` (2.13) doesn't compare the checksums in the file: it would take changed bytes
    for weights.
    """
    path = Path(path)
    if not path.is_file():
        return 'missing'
    if path.stat().st_size == 0:
        return 'empty'
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except zipfile.BadZipFile:
        return 'not written completely'
    return None if changed is None else f'changed after it was written, in its part {changed}'


def _read_safetensors(path: Path, map_location) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(
            f'reading {path} needs the package safetensors: pip install safetensors, or '
            'deim_mmdet[huggingface]'
        ) from None
    try:
        return load_file(path, device=str(map_location))
    except SafetensorError as error:
        raise CheckpointError(
            f'checkpoint {path} is damaged or was not written completely ({error}): take another '
            'copy of it'
        ) from error


def download(url: str) -> Path:
    """Local copy of the file at ``url``; the first process of each machine downloads it, once.

    Raises:
        RuntimeError: The server can't be reached, refuses, or answers with a web page.
    """
    # Files of different models share a name (model.safetensors); the address tells them apart.
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = Path(torch.hub.get_dir()) / 'checkpoints' / f'{digest}-{file_name(url)}'
    if get_local_rank() == 0 and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (URLError, OSError) as error:
            raise CheckpointError(
                f'{url} cannot be downloaded ({error}): fetch the file yourself and give its path'
            ) from error
        _refuse_web_page(path, url)
    barrier()
    return path


def _refuse_web_page(path: Path, url: str) -> None:
    """Remove and refuse a download that is HTML: servers send that instead of a missing file."""
    with open(path, 'rb') as file:
        start = file.read(64)
    if start.lstrip().startswith(b'<'):
        path.unlink()
        raise CheckpointError(
            f'{url} gave a web page instead of a file: open it in a browser, save the file and '
            'give its path'
        )


def write_checkpoint(checkpoint: dict, path: str | Path) -> None:
    """Save a checkpoint; it gets its name only when all of it is written."""
    with replaced_when_complete(path) as temporary:
        torch.save(checkpoint, temporary)
