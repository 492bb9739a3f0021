"""Runs functions and scripts in processes of their own, without importing everything anew.

A process is forked from a server that has imported the libraries once and has never run anything.
A start of Python would take most of a short test's time for these imports.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from starting import leave_configs_unformatted, quick_environment

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(
    ['deim_mmdet', 'mmdet.datasets', 'mmdet.engine', 'mmdet.evaluation', 'mmdet.models']
)


@dataclass
class Ended:
    """How a process ended: its exit code, what the function gave or raised, and after how long."""

    exitcode: int | None
    result: Any = None
    error: str = ''
    seconds: float = 0.0


def _prepare(folder: Path) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    leave_configs_unformatted()


def _run(function: Callable, args: tuple, environment: dict, folder: Path, out) -> None:
    os.environ.update(environment)
    _prepare(folder)
    init_default_scope('mmdet')
    begin = time.monotonic()
    try:
        ended = dict(result=function(*args))
    except Exception:
        ended = dict(error=traceback.format_exc())
    out.send(dict(ended, seconds=time.monotonic() - begin))
    if 'error' in ended:
        raise SystemExit(1)


def _run_script(arguments: list[str], environment: dict, folder: Path, out: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    _prepare(folder)
    with out.open('w') as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = arguments
    # As for `python SCRIPT` with PYTHONPATH.
    paths = environment.get('PYTHONPATH', '').split(os.pathsep)
    sys.path[:0] = [str(Path(arguments[0]).parent), *filter(None, paths)]
    runpy.run_path(arguments[0], run_name='__main__')


def run_script(
    *arguments: Any, environment: dict, folder: Path, out: Path, timeout: float = 900
) -> int:
    """Run a script of Python as ``python SCRIPT ARGUMENTS`` would.

    Args:
        arguments: Path of the script, and its arguments.
        environment: All variables of the environment.
        folder: Working directory.
        out: File for what it prints.
        timeout: Seconds after which it is killed.

    Returns:
        The exit status; that of a signal negative, as :mod:`subprocess` gives it.
    """
    process = _context.Process(
        target=_run_script, args=([*map(str, arguments)], dict(environment), folder, out)
    )
    process.start()
    process.join(timeout)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        raise TimeoutError(f'{arguments[0]} has not ended after {timeout} s')
    return process.exitcode


def end_of_processes(
    function: Callable, count: int, *args, folder: Path, timeout: float = 300
) -> list[Ended]:
    """Call ``function(*args)`` in ``count`` processes that find each other by the environment.

    ``folder`` is their working directory. A process that hasn't ended after ``timeout`` seconds is
    killed and has the exit code None.
    """
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(count):
        environment = dict(
            RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=count,
            MASTER_ADDR='127.0.0.1', MASTER_PORT=port, OMP_NUM_THREADS=1,
            PYTHONPATH=quick_environment()['PYTHONPATH'],
        )  # fmt: skip
        receive, send = _context.Pipe(duplex=False)
        process = _context.Process(
            target=_run,
            args=(function, args, {k: str(v) for k, v in environment.items()}, folder, send),
        )
        process.start()
        send.close()
        started.append((process, receive))
    deadline = time.monotonic() + timeout
    ends = []
    for process, receive in started:
        outcome = {}
        if receive.poll(max(0.0, deadline - time.monotonic())):
            try:
                outcome = receive.recv()
            except EOFError:  # killed
                outcome = {}
        process.join(max(0.0, deadline - time.monotonic()))
        ends.append(Ended(exitcode=process.exitcode, **outcome))
    for process, _ in started:
        if process.is_alive():
            process.kill()
            process.join()
    return ends


def in_processes(function: Callable, count: int, *args, **options) -> list:
    """What ``function(*args)`` gives in each of ``count`` processes; all have to end well."""
    ends = end_of_processes(function, count, *args, **options)
    assert [end.exitcode for end in ends] == [0] * count, '\n'.join(end.error for end in ends)
    return [end.result for end in ends]
