"""Training by several processes: their start over gloo, and the loss of one of them."""

import datetime
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from mmengine.dist import get_dist_info

from ..utils.errors import UserError
from .faults import RunFault

# Variables by which launchers tell a process its rank (its number), the number of processes, and
# its rank on the machine.
VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


class LostProcessError(RunFault):
    """Another process of the run has ended or doesn't answer."""


def init_gloo(launcher: str, timeout: float) -> None:
    """Join the other processes over gloo, torch's backend that needs no GPU.

    ``MASTER_ADDR`` and ``MASTER_PORT`` say where process 0 is; they default to the first machine
    of a Slurm job and to 29500.

    Args:
        launcher: 'pytorch', 'slurm' or 'mpi'.
        timeout: Seconds after which a process that doesn't answer counts as lost.

    Raises:
        ValueError: The launcher's variables are not set: it didn't start this process.
    """
    missing = [name for name in VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {launcher} needs the environment variables {", ".join(missing)}, which '
            'the launcher sets for the processes that it starts: see docs/distributed.md'
        )
    for name, source in zip(VARIABLES['pytorch'], VARIABLES[launcher], strict=True):
        os.environ[name] = os.environ[source]
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_slurm_machine()
    os.environ.setdefault('MASTER_PORT', '29500')
    dist.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout))


def _first_slurm_machine() -> str:
    names = subprocess.run(
        ['scontrol', 'show', 'hostnames', os.environ['SLURM_JOB_NODELIST']],
        capture_output=True,
        text=True,
        check=True,
    )
    return names.stdout.split()[0]


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turn a backend's error about a broken connection into a message that helps.

    gloo notices at once when a process ends, NCCL after its timeout. Their errors name a socket or
    a watchdog. Other errors stay as they are.

    Raises:
        LostProcessError: The communication with another process has failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or '/gloo/' in str(error)):
            raise
        rank, world_size = get_dist_info()
        raise LostProcessError(
            f'process {rank} of {world_size} stops, because another one has ended or no longer '
            'answers. The first error of the others, above or in the logs of their machines, is '
            'the reason; one that was killed (e.g. for want of memory) leaves none. Go on from '
            f'the last checkpoint with --resume. ({error})'
        ) from error


def wait_for_gloo_threads() -> None:
    """Wait until the threads of gloo are at rest, before processes are forked.

    The threads drop the tensors of a finished exchange, and take a lock of Python for that. A
    process that is forked in that moment waits for the lock for ever (seen with CPython 3.11).
    """
    if dist.is_initialized() and dist.get_backend() == 'gloo':
        time.sleep(0.1)
