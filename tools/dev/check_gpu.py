"""What check_gpu.sh runs: the parts of the check, each step in a process of its own.

So a step that fails, ends its interpreter or takes too long ends no other one, and takes no time
from a later one. It needs nothing but Python itself.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_steps import PARTS, ROOT, Kind, Settings, Step

# All processes of a step have its mark in this variable of their environment.
MARK = 'DEIM_MMDET_CHECKED_STEP'
# A step may take so many times its share, where others left the time.
PATIENCE = 4
# Lines of a step's output that are kept with its result where it didn't pass.
TAIL = 40
# Threads of a step that runs beside others.
THREADS = 2


def run(
    step: Step, log: Path, limit: float, variables: dict[str, str], stop: threading.Event
) -> dict:
    """Run a step; returns its seconds, its result, a message, and its figures.

    Figures are the lines of its output that are JSON objects. It is ended with all processes that
    it started when ``limit`` seconds are over, or when ``stop`` is set. Where it doesn't pass, the
    end of its output is kept. ``variables`` of its environment replace those that there are.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    environment = os.environ | {'PYTHONUNBUFFERED': '1', 'PYTHONWARNINGS': 'ignore', MARK: mark}
    environment |= variables
    started = time.monotonic()
    with log.open('w') as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while (code := process.poll()) is None:
                if stop.wait(0.05) or time.monotonic() > started + limit:
                    break
        finally:
            end(process, mark)
    result = 'passed' if code == 0 else 'took too long' if code is None else 'failed'
    result = 'crashed' if code and code < 0 else result
    lines = log.read_text(errors='replace').splitlines()
    figures = list(filter(None, map(parsed, lines)))
    message = next((line for line in reversed(lines) if line.strip()), '')
    if result == 'crashed':
        message = f'{signal.Signals(-code).name}: {message}'
    if result == 'took too long':
        message = f'ended after {limit:.0f} s: {message}'
    return dict(
        step=step.name,
        seconds=round(time.monotonic() - started, 1),
        result=result,
        message=message,
        figures=figures,
        output=[] if result == 'passed' else lines[-TAIL:],
    )


def end(process: subprocess.Popen, mark: str) -> None:
    """End a process and all that it started; those of torchrun are in sessions of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for environment in Path('/proc').glob('[0-9]*/environ'):
        with contextlib.suppress(OSError):
            if f'{MARK}={mark}'.encode() in environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)


def parsed(line: str) -> dict | None:
    """The JSON object that a line is; None where it is none."""
    try:
        found = json.loads(line) if line.startswith('{') else None
    except ValueError:
        return None
    return found


def medians(figure: object) -> object:
    """A figure with the medians in place of percentiles, and with four digits."""
    if isinstance(figure, list):
        return [medians(each) for each in figure]
    if not isinstance(figure, dict):
        return float(f'{figure:.4g}') if isinstance(figure, float) else figure
    if 'median' in figure:
        return medians(figure['median'])
    return {key: medians(value) for key, value in figure.items()}


def table(rows: list[dict]) -> str:
    """The results as a table in Markdown, and all figures below it."""
    lines = ['| part | step | seconds | result | last line |', '|---|---|---|---|---|']
    for row in rows:
        # Of a step that passed the figures say more.
        message = '' if row['figures'] and row['result'] == 'passed' else row['message'].strip()
        message = message.replace('|', '¦')
        lines.append(
            f'| {row["part"]} | {row["step"]} | {row["seconds"]:.1f} | {row["result"]} | '
            f'{message if len(message) <= 240 else message[:239] + "…"} |'
        )
    for row in rows:
        for figure in row['figures']:
            lines.append(f'\n{row["part"]}, {row["step"]}: `{json.dumps(medians(figure))}`')
    return '\n'.join(lines)


def check(parts: list[str], settings: Settings, minutes: float) -> list[dict]:
    """Run parts until their time is over; write ``results.json`` and ``table.md`` after each step.

    Those that only check run side by side, in two threads each. What a step leaves of its share
    goes to later ones.

    Returns:
        What :func:`run` returns, with the part, in the order of the parts.
    """
    steps = [(part, step) for part in parts for step in PARTS[part](settings)]
    waiting = {kind: [pair for pair in steps if pair[1].kind == kind] for kind in Kind}
    cores = len(os.sched_getaffinity(0))
    workers = dict.fromkeys(Kind, 1) | {Kind.CHECKS: max(1, cores // THREADS)}

    def needed() -> float:
        """Seconds that the steps which wait need."""
        shares = {kind: [step.share for _, step in pairs] for kind, pairs in waiting.items()}
        return sum(
            max(sum(each) / workers[kind], max(each, default=0)) for kind, each in shares.items()
        )

    finish = time.monotonic() + 60 * minutes
    # With less time than all shares together, all get less.
    scale = min(1.0, 60 * minutes / needed())
    rows, lock, stop = {}, threading.Lock(), threading.Event()

    def run_next(kind: Kind) -> None:
        with lock:
            part, step = waiting[kind].pop(0)
            left = finish - time.monotonic() - scale * needed()
        if left < 1:
            row = dict(
                step=step.name, seconds=0.0, result='left out', message='', figures=[], output=[]
            )
        else:
            log = settings.out / 'logs' / f'{part}_{step.name}.log'.replace(' ', '_')
            threads = dict(OMP_NUM_THREADS=str(THREADS)) if workers[kind] > 1 else {}
            row = run(step, log, min(left, PATIENCE * step.share), threads, stop)
        with lock:
            rows[part, step.name] = dict(part=part, **row)
            print(f'{part}, {step.name}: {row["result"]}', file=sys.stderr, flush=True)
            done = [rows[key] for part, step in steps if (key := (part, step.name)) in rows]
            (settings.out / 'results.json').write_text(json.dumps(done, indent=1) + '\n')
            (settings.out / 'table.md').write_text(table(done) + '\n')

    for kind in Kind:
        with ThreadPoolExecutor(workers[kind]) as pool:
            count = len(waiting[kind])
            try:
                for ended in [pool.submit(run_next, kind) for _ in range(count)]:
                    ended.result()
            except BaseException:
                # Such as Ctrl-C, which processes of another session don't get.
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    return [rows[part, step.name] for part, step in steps]


def reason_against_gpu() -> str:
    """Why torch can't use a GPU here; empty where it can."""
    command = [sys.executable, '-c', 'import torch; torch.cuda.init()']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
    return lines[-1] if done.returncode else ''


def unpack(wheels: Path, target: Path) -> None:
    """Install wheels into a folder that the steps import from, without network.

    Raises:
        ValueError: There is none, or pip refuses one; the message says why.
    """
    names = sorted(map(str, wheels.glob('*.whl')))
    if not names:
        raise ValueError('there is no wheel (*.whl) in it' if wheels.is_dir() else 'no such folder')
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-index', '--no-deps']
    command = [*pip, '--no-compile', '--upgrade', '--target', str(target), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f'pip could not install what is in it: {done.stderr.strip()[-2000:]}')
    added_to_path(target)


def added_to_path(folder: Path) -> None:
    kept = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join([str(folder), *([kept] if kept else [])])


def main() -> None:
    listed = '\n'.join(f'  {name:12} {part.__doc__}' for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        description=f'Check a machine with a GPU.\n\nparts, default all:\n{listed}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('parts', nargs='*', metavar='PART', help='default: all')
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/check_gpu')
    parser.add_argument(
        '--minutes', type=float, help='for all parts together; default 7, with --device cpu 60'
    )
    parser.add_argument('--wheels', type=Path, metavar='FOLDER', help='wheels to import from')
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f'there is no part {", ".join(unknown)}; there are {", ".join(PARTS)}')
    if args.device == 'cuda' and (reason := reason_against_gpu()):
        parser.error(
            f'--device cuda: torch finds no GPU ({reason}). --device cpu tries all parts without'
        )
    settings = Settings(args.device, args.out.resolve())
    settings.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if args.wheels:
        try:
            unpack(args.wheels, settings.out / 'packages')
        except ValueError as error:
            parser.error(f'--wheels {args.wheels}: {error}')
    added_to_path(ROOT)
    minutes = args.minutes if args.minutes is not None else 60 if settings.small else 7
    minutes -= (time.monotonic() - started) / 60
    rows = check(args.parts or list(PARTS), settings, minutes)
    print(table(rows))
    sys.exit(any(row['result'] != 'passed' for row in rows))


if __name__ == '__main__':
    main()
