"""Loads checkpoints through mmengine's ``CheckpointLoader``, which all of mmengine uses.

``deim-mmdet://FILE`` loads checkpoints of any origin. :class:`~deim_mmdet.engine.DEIMRunner` uses
it for every ``load_from``. It works wherever the loader is used, such as in ``init_detector``.

Files without a scheme, and files in Ceph, are read here too, whoever loads them. mmengine 0.10.7
can't read its own checkpoints with torch 2.6 or later. The fork's mmengine 0.10.12 unpickles
without a check what torch refuses, which runs code. Addresses are left to mmengine.
"""

import io

from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from ..utils.errors import UserError
from .class_names import default_classes
from .classes import drop_unused_row
from .convert import (
    BACKBONE,
    HUGGING_FACE,
    PROJECTOR,
    REFERENCE,
    count_classes,
    find_weights,
    make_checkpoint,
    to_our_names,
)
from .files import file_name, is_url, local_path, read_checkpoint
from .huggingface import classes_beside
from .safe_globals import load
from .timm_weights import load_from_timm  # noqa: F401  (registers its scheme)

SCHEME = 'deim-mmdet://'


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_deim_mmdet(filename: str, map_location=None) -> dict:
    """Load a checkpoint; convert one of the reference or of transformers, and log a line.

    Args:
        filename: ``deim-mmdet://`` and a path or address, also one with another scheme of
            mmengine's loader.
        map_location: See ``torch.load``.

    Raises:
        ValueError: The names are nearly, but not all, those of a model that can be converted.
        FileNotFoundError, RuntimeError: See :func:`~deim_mmdet.checkpoints.files.read_checkpoint`.
    """
    filename = filename.removeprefix(SCHEME)
    if '://' in filename and not is_url(filename):
        return CheckpointLoader.load_checkpoint(filename, map_location)
    checkpoint = read_checkpoint(filename, map_location or 'cpu')
    if 'state_dict' in checkpoint:
        # Some versions of mmengine save the config's text here. A resume would run that text as
        # Python to find a number of GPUs.
        (checkpoint.get('meta') or {}).pop('config', None)
    else:
        checkpoint = _converted(checkpoint, filename)
    if dropped := drop_unused_row(checkpoint):
        print_log(f'{file_name(filename)}: {dropped}', logger='current')
    return checkpoint


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location=None) -> dict:
    """Load a file as mmengine's loader of this name does, except for what the module says.

    Arguments and errors are those of :func:`~deim_mmdet.checkpoints.files.read_checkpoint`.
    """
    return read_checkpoint(filename, map_location)


# The prefixes are regular expressions, the same that mmengine registers.
@CheckpointLoader.register_scheme([r'(\S+\:)?s3://', r'(\S+\:)?petrel://'], force=True)
def load_from_ceph(filename: str, map_location=None) -> dict:
    """Load from Ceph as mmengine's loader of this name does, except for what the module says.

    Args:
        filename: Address of the file, ``s3://…`` or ``petrel://…``.
        map_location: See ``torch.load``.

    Raises:
        RuntimeError: See :func:`~deim_mmdet.checkpoints.safe_globals.load`.
    """
    backend = get_file_backend(filename, backend_args=dict(backend='petrel'))
    return load(io.BytesIO(backend.get(filename)), filename, map_location)


def check_found(filename: str) -> None:
    """Look for a local checkpoint before anything is built for it; addresses are left alone.

    Raises:
        FileNotFoundError: There is no such file.
    """
    filename = filename.removeprefix(SCHEME)
    if '://' not in filename:
        local_path(filename)


def _converted(checkpoint: dict, filename: str) -> dict:
    """The checkpoint, converted if its names are those of another implementation."""
    name = file_name(filename)
    try:
        weights = find_weights(checkpoint)
        if weights.naming == BACKBONE:
            # The backbone's own module renames them.
            return make_checkpoint(weights.state_dict, None)
        if weights.naming not in (REFERENCE, HUGGING_FACE):
            return checkpoint
        state_dict = to_our_names(weights)
    except ValueError as error:
        raise UserError(f'{name}: {error}') from None
    print_log(
        f'{name}: converted {len(state_dict)} parameters while loading, {weights.naming} weights '
        f'from {weights.part}',
        logger='current',
    )
    dropped = [key for key in weights.state_dict if key.startswith(PROJECTOR)]
    if dropped:
        print_log(
            f'{name}: of RT-DETRv4; left out, as only its training uses them: {", ".join(dropped)}',
            logger='current',
        )
    classes = classes_beside(filename)
    # 80 scores without class names are most often COCO's, 366 are Objects365's.
    assumed = classes is None
    if assumed:
        classes = default_classes(count_classes(state_dict) or 0)
    return make_checkpoint(state_dict, classes, assumed_classes=assumed)
