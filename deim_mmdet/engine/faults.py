"""Faults of the machine around a training: what is checked before, and how each is explained."""

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.hooks import EMAHook

from ..checkpoints.files import find_damage
from ..datasets.transforms.loading import UnreadableImageError
from ..utils.errors import UserError

#: Errors of a full disk: no space, quota used up, limit of file sizes.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GO_ON = 'then go on with --resume'
# Half-written files begin with a dot, best ones with "best_": neither can be resumed from.
RESUMABLE = re.compile(r'(?!\.|best_).*_(\d+)\.pth')


class RunFault(RuntimeError):
    """A run ended for a reason outside the program; the message says why and what to do."""


class NonFiniteError(RunFault):
    """A training has produced NaN or an infinity."""


class NonFiniteLossError(NonFiniteError):
    """A loss term is NaN or infinite."""


class NonFiniteGradientError(NonFiniteError):
    """All loss terms are finite, but not the gradients that follow from them."""


class NonFiniteWeightError(NonFiniteError):
    """Weights, or the running statistics of norms, are NaN or infinite."""


#: Errors whose messages say everything, whenever they are raised.
EXPLAINED = (RunFault, UserError)
#: What a mistake in a config, an option or annotations raises before anything runs.
MISTAKES = (*EXPLAINED, ValueError, FileNotFoundError)


@contextmanager
def without_traceback(*kinds: type[Exception]) -> Iterator[None]:
    """End a command with the message of an error alone, where it says everything.

    It is a context, and a decorator of functions.

    Args:
        kinds: Types of such errors. Others keep their tracebacks.

    Raises:
        SystemExit: There was one. Python prints the message and exits with 1.
    """
    try:
        yield
    except kinds as error:
        sys.exit(f'{type(error).__name__}: {error}')


def check_writable(
    folder: str | Path, name: str = 'the work directory', option: str = '--work-dir'
) -> None:
    """Check that a folder can be made and written to.

    Args:
        folder: The folder.
        name: What the message calls it.
        option: The command's option that names another one.

    Raises:
        RunFault: It can't.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunFault(
            f'cannot write to {name} {folder} ({error.strerror}): make it writable, or name '
            f'another by {option}'
        ) from error


def check_space(folder: str | Path, needed: int) -> None:
    """Check that a checkpoint fits into a folder.

    Args:
        folder: Where checkpoints go; need not exist yet.
        needed: Size of one checkpoint in bytes.

    Raises:
        RunFault: Not even one fits.
    """
    free = free_space(folder)
    if free < needed:
        raise RunFault(
            f'{folder} has {megabytes(free)} of free space, but a checkpoint of this training '
            f'takes about {megabytes(needed)}: free some, or name another folder by --work-dir'
        )


def free_space(folder: str | Path) -> int:
    """Bytes that can be written under a folder, which need not exist yet."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def checkpoint_size(runner) -> int:
    """Approximate size of a training's checkpoint (weights, average, optimiser) in bytes."""
    weights = _size(runner.model.state_dict().values())
    averages = sum(isinstance(hook, EMAHook) for hook in runner.hooks)
    moments = sum(
        _size(group['params']) * (len(group.get('betas', ())) or bool(group.get('momentum')))
        for group in runner.optim_wrapper.optimizer.param_groups
    )
    return weights * (1 + averages) + moments


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def megabytes(size: int) -> str:
    return f'{size / 1e6:.1f} MB'


def unwritten_checkpoint(path: Path, needed: int, error: OSError) -> RunFault:
    """The fault of a checkpoint that could not be written.

    Args:
        path: The checkpoint.
        needed: Its approximate size in bytes.
        error: The system's error.
    """
    return RunFault(
        f'the checkpoint {path} could not be written ({error.strerror}): it takes about '
        f'{megabytes(needed)}, and {megabytes(free_space(path.parent))} are free there. The '
        f'checkpoints before it are untouched; free some space, {GO_ON}'
    )


@contextmanager
def explained_faults(work_dir: str | Path) -> Iterator[None]:
    """Turn the errors that a fault of the machine raises in a training into one message.

    Raises:
        RunFault: There was no space to write a file, no memory left on the GPU, a data-loader
            worker died, or an image has vanished or can't be read.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        # Two sentences, then come many about torch's allocator.
        reason = '. '.join(str(error).split('. ')[:2])
        raise RunFault(
            f'{reason}. A training step needs more memory than the GPU has left: lower '
            'train_dataloader.batch_size (--batch-size auto finds what fits), train with --amp, or '
            f'lower image_size, {GO_ON}'
        ) from error
    except RuntimeError as error:
        died = re.search(r'DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)(.*)', str(error))
        if died is None:
            raise
        raise RunFault(
            f'the data-loader worker with process id {died[1]}{died[2].rstrip(" .")}: most often '
            'memory has run out and the system killed it. Lower train_dataloader.num_workers, '
            'train_dataloader.prefetch_factor or train_dataloader.batch_size (after "Bus error", '
            f'give the machine or container more shared memory, /dev/shm), {GO_ON}'
        ) from error
    except (FileNotFoundError, UnreadableImageError) as error:
        message = str(error)
        if 'in DataLoader worker process' in message:
            # The worker's traceback, whose last line is the error's own text.
            message = message.strip().splitlines()[-1].split(': ', 1)[-1]
        elif not isinstance(error, UnreadableImageError):
            raise
        raise RunFault(f'{message} Training so far is not lost: {GO_ON}') from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise RunFault(
            f'{error.filename or work_dir} could not be written ({error.strerror}): '
            f'{megabytes(free_space(work_dir))} are free in {work_dir}. The checkpoints are '
            f'untouched; free some space, {GO_ON}'
        ) from error


def find_resumable(work_dir: str | Path) -> tuple[Path | None, dict[str, str]]:
    """The checkpoint to resume from: the one that ``last_checkpoint`` names, if it is intact.

    Otherwise it is the intact one beside it with the latest step (the number at the end of its
    name). Best checkpoints don't count, as they hold no optimiser. A copied or moved work directory
    resumes from its own checkpoints, though ``last_checkpoint`` still names the old folder.

    Returns:
        The path, None where there is no checkpoint at all; and each damaged file that would have
        come first, with what is wrong.

    Raises:
        RunFault: There are checkpoints, but none is intact.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    candidates, damage = [], {}
    folder = work_dir
    if pointer.is_file():
        named = Path(pointer.read_text(errors='replace').strip('\0\n '))
        if not named.name:
            damage[str(pointer)] = 'empty'
        else:
            if not _resumable(work_dir):
                folder = named.parent
            candidates.append(folder / named.name)
    candidates += [path for path in _resumable(folder) if path not in candidates]
    for path in candidates:
        reason = find_damage(path)
        if reason is None:
            return path, damage
        damage[str(path)] = reason
    if damage:
        raise RunFault(
            f'no checkpoint in {folder} is intact: {describe_damage(damage)}. Start anew without '
            '--resume, or name another checkpoint, --resume FILE'
        )
    return None, damage


def _resumable(folder: Path) -> list[Path]:
    """Checkpoints by epoch or iteration in a folder, the latest first."""
    steps = [
        (int(step[1]), path)
        for path in folder.glob('*.pth')
        if (step := RESUMABLE.fullmatch(path.name))
    ]
    return [path for _, path in sorted(steps, reverse=True)]


def describe_damage(damage: dict[str, str]) -> str:
    return ', '.join(f'{path} ({reason})' for path, reason in damage.items())
