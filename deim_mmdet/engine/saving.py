"""Checkpoints that get their names only once they are on the disk."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.runner import Runner

from ..utils.files import replaced_when_complete
from .faults import checkpoint_size, unwritten_checkpoint


@master_only
def save_whole(
    save: Callable[..., None], runner: Runner, out_dir: str, filename: str, *args, **kwargs
) -> None:
    """Save a checkpoint; in a folder of this machine it replaces an old one only when complete.

    Args:
        save: mmengine's ``Runner.save_checkpoint`` of the runner.
        runner: The training.
        out_dir: Folder of the checkpoint.
        filename: Its name.
        args: Further arguments of ``save``.
        kwargs: Keyword arguments of ``save``.

    Raises:
        RunFault: The file could not be written, e.g. as the disk is full.
    """
    if not isinstance(get_file_backend(out_dir), LocalBackend):
        save(out_dir, filename, *args, **kwargs)
        return
    path = Path(out_dir) / filename
    try:
        with replaced_when_complete(path) as temporary:
            save(out_dir, temporary.name, *args, **kwargs)
    except OSError as error:
        raise unwritten_checkpoint(path, checkpoint_size(runner), error) from error


def let_save_whole(runner: Runner) -> None:
    """Let a runner save all its checkpoints by :func:`save_whole`, as ``DEIMRunner`` does."""
    if not getattr(runner, 'saves_whole', False):
        runner.save_checkpoint = partial(save_whole, runner.save_checkpoint, runner)
        runner.saves_whole = True
