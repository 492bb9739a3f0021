"""Run the convergence study: which part of DEIM pays, on which data, after how many iterations.

    python tools/analysis/convergence_study.py --list
    BCCD_ROOT=data/bccd python tools/analysis/convergence_study.py --jobs 2
    python tools/analysis/convergence_study.py --only 'sparse_short_*' --seeds 0 1 2
    python tools/analysis/convergence_study.py --large --jobs 4
    python tools/analysis/convergence_study.py --starts digits20k
    python tools/analysis/convergence_study.py --list --records docs/convergence

A run is a config of configs/convergence with a budget (number of iterations) and a seed. It trains
on the GPU, or on the CPU with one thread. Finished runs in the work directory are kept, unfinished
ones are resumed: the study may be stopped (Ctrl-C) and started again at any time. The scenes with
digits are made first. A run's name is <data set>_<budget>_<variant>_seed<n>. --large has ten times
as many digits and iterations, for the baseline and DEIM alone: tools/dev/gpu_study.sh runs it.
--starts trains 205, 100 and 50 images of BCCD from nothing and from weights: those of a run on
scenes with digits, which comes first. study_runs.py has all runs.

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

import study_runs
from study_runs import ROOT, Run

POLL_SECONDS = 2.0
REPORT_SECONDS = 60.0


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
    for name, facts in sorted({run.folder: run.facts for run in runs}.items()):
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
    # What others start from comes first.
    starts = list(dict.fromkeys(run.start for run in runs if run.start))
    runs = starts + [run for run in runs if run not in starts]
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

    for part in starts, runs[len(starts) :]:
        commands = {run.name: run.command(root) for run in part if progress(run, root)[0] < 1}
        failed = run_all(commands, lambda name: root / name / 'output.log', jobs, report)
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
    if run.facts.images:
        settings['training images'] = f'the first {run.facts.images}'
    if run.start:
        settings['weights to start from'] = run.start.name
        settings |= study_runs.WITH_WEIGHTS[run.further][1]
    with replaced_when_complete(folder / f'{run.name}.json') as path:
        path.write_text(json.dumps(settings, indent=2) + '\n')
    return True


def comparisons(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Records in a folder, grouped by plot: ``{comparison: {variant: records}}``."""
    groups: dict[str, dict[str, list[Path]]] = {}
    variants = study_runs.VARIANTS
    pairs = [
        (f'{data}_{budget}', variant, f'{data}_{budget}_{variant}_seed*.csv')
        for data in study_runs.DATA | study_runs.LARGE
        for budget in study_runs.BUDGETS
        for variant in variants
    ]
    for model in study_runs.REPRODUCED:
        pairs += [
            ('bccd_reproduction', f'{model}, reference', f'reference_{model}.csv'),
            ('bccd_reproduction', f'{model}, ours', f'bccd_reproduction_{model}_seed*.csv'),
        ]
    pairs += [
        (f'starts_{data}_{budget}', variant + label, f'{data}_{budget}_{variant}{suffix}_seed*.csv')
        for data in study_runs.FEW
        for budget in study_runs.FEW_BUDGETS
        # Records from nothing are no comparison of starts until there are some from weights.
        if any(folder.glob(f'{data}_{budget}_*_digits*.csv'))
        for suffix, label in study_runs.ways_to_start().items()
        for variant in variants
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
    other = parser.add_mutually_exclusive_group()
    other.add_argument('--large', action='store_true', help='the large data sets, for a GPU')
    other.add_argument(
        '--starts', choices=study_runs.PRETRAINING, help='BCCD from nothing and from these weights'
    )
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
    if args.starts:
        everything = study_runs.plan_starts(args.seeds, args.starts)
    elif args.large:
        everything = study_runs.plan_large(args.seeds)
    else:
        everything = study_runs.plan(args.seeds)
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
