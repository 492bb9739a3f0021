"""Run the convergence study: which part of DEIM pays, on which data, after how many iterations.

    python tools/analysis/convergence_study.py --list
    BCCD_ROOT=data/bccd python tools/analysis/convergence_study.py --jobs 2
    python tools/analysis/convergence_study.py --only 'sparse_short_*' --seeds 0 1 2
    python tools/analysis/convergence_study.py --large --jobs 4
    python tools/analysis/convergence_study.py --list --records docs/convergence

A run is a config of configs/convergence with a budget (number of iterations) and a seed. It trains
on the GPU, or on the CPU with one thread. Finished runs in the work directory are kept, unfinished
ones are resumed: the study may be stopped (Ctrl-C) and started again at any time. The scenes with
digits are made first. A run's name is <data set>_<budget>_<variant>_seed<n>. --large has ten times
as many digits and iterations, for the baseline and DEIM alone: tools/dev/gpu_study.sh runs it.

--records writes a small record of each run that was begun (AP by epoch as .csv, settings as .json)
to a folder. From all records there, also those of other machines, it draws the comparisons of
tools/analysis/compare_runs.py, one for each data set and budget.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import median

from deim_mmdet.engine.history import (
    evaluations_of,
    read_boundaries,
    read_history,
    write_evaluations,
)
from deim_mmdet.utils.files import replaced_when_complete

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ('baseline', 'mal', 'dense_o2o', 'deim')
REPRODUCED = ('dfine_n', 'deim_dfine_n')
POLL_SECONDS = 2.0
REPORT_SECONDS = 60.0


@dataclass(frozen=True)
class Data:
    """A data set of the study.

    Args:
        iters_per_epoch: Iterations an epoch, in the study's batches of 8.
        make: Options of tools/demo/make_dataset.py, or None for a data set that already exists.
        like: The smaller data set of the same kind, in ``DATA``, whose configs it takes.
        scale: Factor of the budgets.
    """

    iters_per_epoch: int
    make: str | None = None
    like: str | None = None
    scale: int = 1


DIGITS = '--size 224 --digits 0 2 3 4'
SPARSE, CROWDED = '--objects 1 3', '--objects 8 16 --scale 0.12 0.3'
DATA = {
    'sparse': Data(250, f'--train 2000 --val 200 {DIGITS} {SPARSE}'),
    'crowded': Data(250, f'--train 2000 --val 200 {DIGITS} {CROWDED}'),
    'bccd': Data(25),
}
# Ten times as much of each, for a GPU; only the variants of ``COMPARED``.
LARGE = {
    'sparse20k': Data(2500, f'--train 20000 --val 1000 {DIGITS} {SPARSE}', 'sparse', 10),
    'crowded20k': Data(2500, f'--train 20000 --val 1000 {DIGITS} {CROWDED}', 'crowded', 10),
}
COMPARED = ('baseline', 'deim')
# Approximate iterations of a run, in whole epochs. A long run has twice as many as a short one: a
# short run with DEIM beside a long one without shows whether DEIM halves a training.
BUDGETS = {'short': 1500, 'long': 3000}
EVALUATIONS = 20


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        name: Name of its work directory and record.
        config: File under configs/convergence.
        epochs: Number of epochs.
        val_interval: Epochs between evaluations.
        seed: Seed of weights, order and augmentation.
        data: Key of its data set in ``DATA`` or ``LARGE``.
    """

    name: str
    config: str
    epochs: int
    val_interval: int
    seed: int
    data: str

    @property
    def facts(self) -> Data:
        """Its data set."""
        return (DATA | LARGE)[self.data]

    @property
    def iterations(self) -> int:
        """Its length in iterations."""
        return self.epochs * self.facts.iters_per_epoch

    def command(self, root: Path) -> list[str]:
        """Command that trains or resumes it under ``root``."""
        options = {
            'train_cfg.max_epochs': self.epochs,
            'train_cfg.val_interval': self.val_interval,
            'randomness.seed': self.seed,
        }
        if self.facts.make:
            options['data_root'] = root / 'data' / self.data
        return [
            sys.executable,
            str(ROOT / 'tools/train.py'),
            str(ROOT / 'configs/convergence' / self.config),
            *('--work-dir', str(root / self.name), '--resume', '--cfg-options'),
            *(f'{key}={value}' for key, value in options.items()),
        ]


def plan(seeds: Iterable[int], large: bool = False) -> list[Run]:
    """All runs of the study, the most important ones first; or those of its large data sets."""
    if large:
        return [run for seed in seeds for run in study(LARGE, COMPARED, seed)]
    runs = []
    for seed in seeds:
        for model in REPRODUCED:
            name = f'bccd_reproduction_{model}'
            runs.append(Run(f'{name}_seed{seed}', f'{name}.py', 30, 1, seed, 'bccd'))
        runs += study(DATA, VARIANTS, seed)
    return runs


def study(data_sets: dict[str, Data], variants: Iterable[str], seed: int) -> list[Run]:
    """The runs on some data sets, shorter ones first."""
    runs = []
    for budget, iterations in BUDGETS.items():
        for data, facts in data_sets.items():
            epochs = round(iterations * facts.scale / facts.iters_per_epoch)
            interval = max(1, epochs // EVALUATIONS)
            for variant in variants:
                name = f'{data}_{budget}_{variant}_seed{seed}'
                config = f'study_{facts.like or data}_{variant}.py'
                runs.append(Run(name, config, epochs, interval, seed, data))
    return runs


def progress(run: Run, root: Path) -> tuple[float, float]:
    """Finished share of a run, in [0, 1], and its seconds an iteration (0 where unknown)."""
    try:
        history = read_history(root / run.name)
    except FileNotFoundError:
        return 0.0, 0.0
    # The median, as a machine may be busy or asleep for a while.
    seconds = median([line['time'] for line in history.train.values() if 'time' in line] or [0.0])
    if max(history.val, default=0) >= run.epochs:
        return 1.0, seconds
    # Not 1 before the last evaluation.
    return min(0.999, max(history.train) / run.iterations), seconds


def make_data(runs: Iterable[Run], root: Path, jobs: int) -> None:
    """Make the data sets that the runs need and that don't exist."""
    for name, facts in sorted({run.data: run.facts for run in runs}.items()):
        if options := facts.make:
            tool = ROOT / 'tools/demo/make_dataset.py'
            command = [sys.executable, tool, root / 'data' / name, *options.split()]
            subprocess.run([*command, '--jobs', str(jobs)], check=True)


def run_all(
    commands: dict[str, list[str]],
    logs: Callable[[str], Path],
    jobs: int,
    report: Callable[[list[str], list[str]], None],
) -> list[str]:
    """Run commands, ``jobs`` at a time, each with one thread.

    If it is stopped, it first ends the commands that it started.

    Args:
        commands: Commands by name, in order.
        logs: Gives the file that the output of a command, by its name, is appended to.
        jobs: Number of commands side by side.
        report: Called now and then with the names of running and of waiting commands.

    Returns:
        Names of the commands that failed; the others ran all the same.
    """
    waiting, running, failed = list(commands), {}, []
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1')
    reported = -REPORT_SECONDS
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                log = logs(name)
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open('a') as file:
                    running[name] = subprocess.Popen(
                        commands[name], env=env, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
                    )
            if time.monotonic() - reported >= REPORT_SECONDS:
                reported = time.monotonic()
                report(list(running), waiting)
            time.sleep(min(POLL_SECONDS, REPORT_SECONDS))
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode:
                    failed.append(name)
                    print(f'{name} failed, see {logs(name)}', flush=True)
                else:
                    print(f'{name} is finished', flush=True)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def train(runs: list[Run], root: Path, jobs: int) -> None:
    """Make the data of the runs and train those that aren't finished.

    Raises:
        SystemExit: A run failed, or another study is at work in ``root``.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = (root / 'lock').open('w')  # held until this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f'another study is at work in {root}: wait for it, or give another --root')
    make_data(runs, root, jobs)

    def report(running: list[str], waiting: list[str]) -> None:
        done = {run.name: progress(run, root) for run in runs}
        left = seconds_left(runs, done) / jobs
        shares = ', '.join(f'{name} {done[name][0]:.0%}' for name in running)
        finished = sum(share == 1 for share, _ in done.values())
        print(
            f'{finished} of {len(runs)} runs finished; {shares}; {len(waiting)} waiting; about '
            f'{left // 3600:.0f}:{left % 3600 // 60:02.0f} h left',
            flush=True,
        )

    open_runs = {run.name: run.command(root) for run in runs if progress(run, root)[0] < 1}
    failed = run_all(open_runs, lambda name: root / name / 'output.log', jobs, report)
    if failed:
        sys.exit(f'{len(failed)} runs failed: {", ".join(failed)}')


def seconds_left(runs: Iterable[Run], done: dict[str, tuple[float, float]]) -> float:
    """Seconds of training that are left, one run after the other.

    A run that didn't begin counts as fast as others of its configuration, or else as the mean.

    Args:
        runs: The runs.
        done: Result of :func:`progress` by the run's name.
    """
    measured: dict[str, float] = {}
    for run in runs:
        if done[run.name][1]:
            measured[run.config] = done[run.name][1]
    mean = sum(measured.values()) / max(1, len(measured))
    return sum(
        (1 - done[run.name][0]) * run.iterations * measured.get(run.config, mean) for run in runs
    )


def write_record(run: Run, root: Path, folder: Path) -> bool:
    """Write the record of a run; returns False where nothing was evaluated yet."""
    try:
        history = read_history(root / run.name)
    except FileNotFoundError:
        return False
    evaluations = evaluations_of(history)
    if not evaluations:
        return False
    write_evaluations(evaluations, folder / f'{run.name}.csv')
    settings = {
        'config': f'configs/convergence/{run.config}',
        'seed': run.seed,
        'epochs': run.epochs,
        'evaluated epochs': evaluations[-1].epoch,
        'iterations an epoch': history.iterations_per_epoch,
        'stages': read_boundaries(root / run.name),
        'data': run.facts.make or 'BCCD, train.json and test.json',
    }
    with replaced_when_complete(folder / f'{run.name}.json') as path:
        path.write_text(json.dumps(settings, indent=2) + '\n')
    return True


def comparisons(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Records in a folder, grouped by plot: ``{comparison: {variant: records}}``."""
    groups: dict[str, dict[str, list[Path]]] = {}
    pairs = [
        (f'{data}_{budget}', variant, f'{data}_{budget}_{variant}_seed*.csv')
        for data in DATA | LARGE
        for budget in BUDGETS
        for variant in VARIANTS
    ]
    for model in REPRODUCED:
        pairs += [
            ('bccd_reproduction', f'{model}, reference', f'reference_{model}.csv'),
            ('bccd_reproduction', f'{model}, ours', f'bccd_reproduction_{model}_seed*.csv'),
        ]
    for comparison, variant, pattern in pairs:
        if records := sorted(folder.glob(pattern)):
            groups.setdefault(comparison, {})[variant] = records
    return groups


def draw_comparisons(folder: Path) -> None:
    """Compare the records in a folder: ``comparison_<name>.png`` and ``.csv``, and the tables."""
    for name, variants in comparisons(folder).items():
        groups = [f'{variant}={",".join(map(str, paths))}' for variant, paths in variants.items()]
        options = ['--title', name.replace('_', ', '), '--out', folder / f'comparison_{name}.png']
        print(f'\n{name}', flush=True)
        tool = ROOT / 'tools/analysis/compare_runs.py'
        subprocess.run([sys.executable, tool, *groups, *options], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--root',
        type=Path,
        default=ROOT / 'work_dirs/convergence',
        help='folder of the work directories and the digits; default work_dirs/convergence',
    )
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs side by side')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='seeds; default 0')
    parser.add_argument('--large', action='store_true', help='the large data sets, for a GPU')
    parser.add_argument(
        '--only', nargs='+', default=['*'], metavar='PATTERN', help="names, e.g. 'sparse_*_deim_*'"
    )
    parser.add_argument('--list', action='store_true', help='train nothing, say what is done')
    parser.add_argument(
        '--records', type=Path, metavar='FOLDER', help='write records and plots here'
    )
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    root = args.root.resolve()
    everything = plan(args.seeds, args.large)
    runs = [run for run in everything if any(fnmatch(run.name, p) for p in args.only)]
    if not runs:
        sys.exit(f'--only: no run is named {" or ".join(args.only)}; --list shows all names')

    if args.list:
        for run in runs:
            print(f'{progress(run, root)[0]:4.0%}  {run.name}')
    else:
        train(runs, root, args.jobs)
    if args.records:
        written = sum(write_record(run, root, args.records) for run in runs)
        print(f'{written} records written to {args.records}')
        draw_comparisons(args.records)


if __name__ == '__main__':
    main()
