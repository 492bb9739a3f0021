"""Kill a training again and again, resume it each time, and compare with the undisturbed one.

    python tests/engine/kills.py FOLDER CONFIG [--kills 50] [--seed 0] [--cfg-options ...]

Moments are drawn at random: a time after some call of a hook (kill -9 from outside), such a call
(kill -9 from inside), a byte of a checkpoint at which the kernel ends the process while it is
written, or the start of a worker that loads data. How far the attempts get doesn't depend on the
machine's speed. After each, every checkpoint that has its final name must be whole. Ends with a
report in JSON; exits non-zero where anything differs.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import deim_mmdet  # noqa: F401  registers what configs name
from deim_mmdet.checkpoints.files import find_damage
from deim_mmdet.engine.config import load_config

import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from states import different_runs

POINTS = [
    *('before_train', 'before_train_epoch', 'before_train_iter', 'after_train_iter'),
    *('after_train_epoch', 'before_val_epoch', 'after_val_iter', 'after_val_epoch'),
    'before_save_checkpoint',
]
#: Epochs, up to which an attempt gets at most; a third of them get to the next checkpoint.
REACH = 1.5


class Moments(Hook):
    """Counts the hooks' calls and the checkpoints, and dies at the one that is asked for.

    Args:
        signals: File descriptor that gets a byte when training begins, and one a call.
        kind: ``'call'``, ``'byte'``, or anything else for none.
        number: Which call, or which checkpoint.
        size: Bytes of the checkpoint that get written.
    """

    priority = 'LOWEST'

    def __init__(self, signals, kind=None, number=0, size=0):
        self.signals, self.kind, self.number, self.size = signals, kind, number, size
        self.calls = self.saves = 0
        for point in POINTS:
            setattr(self, point, self.at_call if 'save' not in point else self.at_save)

    def at_call(self, runner, *args, **kwargs):
        os.write(self.signals, b'.')
        self.calls += 1
        if self.kind == 'call' and self.calls == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def at_save(self, runner, checkpoint):
        self.at_call(runner)
        self.saves += 1
        if self.kind == 'byte' and self.saves == self.number:
            # The kernel lets the file grow to this size, then ends the process, no cleaning up.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


def train(
    cfg: Config, work_dir: Path, log: Path, pause: float = 0.0, **moment
) -> tuple[int, int, float]:
    """Train, or go on, in a child process.

    Args:
        cfg: Whole config.
        work_dir: Of the training.
        log: File that its output is appended to.
        pause: Seconds between the call that ``moment`` names and a kill of kind ``'time'``.
        moment: Of :class:`Moments`; kind ``'time'`` is a kill from outside, ``'worker'`` one when
            a worker starts.

    Returns:
        Signal that ended it or 0, calls of hooks, seconds since training began.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()

        def in_worker() -> None:
            # A worker whose parent dies now stays for ever, as torch only looks whether its parent
            # changes later on. Holding the pipe open, it would keep the kill from being noticed.
            os.close(writing)
            if moment.get('kind') == 'worker':
                os.kill(os.getppid(), signal.SIGKILL)

        os.register_at_fork(after_in_child=in_worker)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 1
        with contextlib.suppress(BaseException):
            cfg.update(work_dir=str(work_dir), resume=True, launcher='none')
            runner = RUNNERS.build(cfg)
            runner.register_hook(Moments(writing, **moment))
            runner.train()
            status = 0
        os._exit(status)
    os.close(writing)
    calls = len(os.read(reading, 1))
    begin = time.monotonic()
    outside = moment.get('kind') == 'time'
    while block := os.read(reading, 4096):
        calls += len(block)
        if outside and calls >= moment['number']:
            time.sleep(pause)
            os.kill(child, signal.SIGKILL)
            outside = False
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status > 0:
        raise RuntimeError(f'training failed: {log.read_text()[-3000:]}')
    return -status, calls, time.monotonic() - begin


def damaged_files(work_dir: Path) -> list[str]:
    """Checkpoints under their final names, and the one to resume from, that aren't whole."""
    # Half-written files have names of their own, beginning with a dot.
    paths = [*work_dir.glob('[!.]*.pth')]
    pointer = work_dir / 'last_checkpoint'
    if pointer.exists():
        paths.append(Path(pointer.read_text()))
    return [f'{path}: {reason}' for path in paths if (reason := find_damage(path))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path, help='new folder for work directories and logs')
    parser.add_argument(
        'config', type=Path, help='whole config of a training that saves each epoch'
    )
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cfg = load_config(args.config, args.cfg_options)
    undisturbed, disturbed = args.folder / 'undisturbed', args.folder / 'disturbed'
    log = args.folder / 'log.txt'
    _, calls, seconds = train(cfg, undisturbed, log)
    share = REACH / cfg.train_cfg.max_epochs
    size = max(path.stat().st_size for path in undisturbed.glob('*.pth'))

    chance = random.Random(args.seed)
    kinds, damage = Counter(), []
    choice = ['time', 'call', 'byte'] + ['worker'] * (cfg.train_dataloader.num_workers > 0)
    while kinds.total() < args.kills:
        kind = chance.choice(choice)
        call = chance.randint(1, round(share * calls))
        moment = dict(
            kind=kind,
            number=chance.randint(1, 2) if kind == 'byte' else call,
            size=round(chance.uniform(0, 1) * size),
            pause=chance.uniform(0, 1) * seconds / calls,
        )
        if not train(cfg, disturbed, log, **moment)[0]:
            break
        kinds[kind] += 1
        damage += damaged_files(disturbed)
    train(cfg, disturbed, log)
    different = different_runs(undisturbed, disturbed)
    print(json.dumps(dict(kills=kinds, damaged=damage, different=different)))
    sys.exit(bool(damage or different))


if __name__ == '__main__':
    main()
