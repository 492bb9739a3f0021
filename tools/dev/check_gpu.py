"""What check_gpu.sh runs: the parts of the check, each step in a process of its own.

So a step that fails, ends its interpreter or takes too long ends no other one. It needs nothing but
Python itself.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = 'configs/demo/deim_dfine_demo.py'


@dataclass(frozen=True)
class Step:
    """A command, run in the checkout, and the seconds that it may take."""

    name: str
    command: list[str]
    limit: float


@dataclass(frozen=True)
class Settings:
    """What the steps depend on: ``'cuda'`` or ``'cpu'``, and the folder of all that is written."""

    device: str
    out: Path

    @property
    def small(self) -> bool:
        """Whether sizes have to be those of a CPU."""
        return self.device == 'cpu'

    def step(self, name: str, limit: float, *command: object) -> Step:
        """Arguments for Python, and the seconds that they may take on a GPU."""
        return Step(name, [sys.executable, *map(str, command)], limit * (8 if self.small else 1))

    def part(self, name: str, limit: float, function: str, *options: str) -> Step:
        """A step that is a function of gpu_parts.py."""
        common = ('--device', self.device, '--out', self.out)
        return self.step(name, limit, 'tools/dev/gpu_parts.py', function, *common, *options)

    def tests(self, name: str, limit: float, *options: object) -> Step:
        return self.step(name, limit, '-X', 'faulthandler', '-m', 'pytest', '-q', '-rs', *options)


def operators(settings: Settings) -> Iterator[Step]:
    """Compile them, run their tests on the device, time them."""
    yield settings.step('compile', 120, 'setup.py', '--quiet', 'build_ext', '--inplace')
    yield settings.part('versions', 60, 'machine')
    # On their own: on one machine they ended the interpreter.
    tests = 'tests/ops/test_deformable_attention.py'
    yield settings.tests('refused arguments', 60, tests, '-k', 'operator_checks')
    chosen = 'gradients or types' if settings.small else 'not operator_checks'
    yield settings.tests('tests', 120, tests, '-k', chosen)
    sizes = ('--repeats', '3', '--threads', '1') if settings.small else ()
    yield settings.step('times', 60, 'benchmarks/operators.py', '--device', settings.device, *sizes)


def precision(settings: Settings) -> Iterator[Step]:
    """Losses and gradients in mixed precision against double precision."""
    yield settings.part('losses and gradients', 90, 'precision')


def reads(settings: Settings) -> Iterator[Step]:
    """An iteration of the trainer in which only marked reads may wait for the GPU."""
    yield settings.part('an iteration', 90, 'reads')


def steps(settings: Settings) -> Iterator[Step]:
    """Times of training steps: ours, compiled, captured; the reference; transformers."""
    sizes = ('--models', 'dfine_n', '--repeats', '1') if settings.small else ()
    device = ('--device', settings.device)
    yield settings.step('side by side', 150, 'benchmarks/training_step.py', *device, *sizes)
    forms = {'eager': (), 'compiled': ('--compile',), 'captured': ('--cuda-graph',)}
    for name, options in forms.items():
        if name == 'captured' and settings.small:
            continue
        chosen = [f'--train-option={option}' for option in options]
        yield settings.part(f'trainer, {name}', 120, 'iterations', *chosen)


def training(settings: Settings) -> Iterator[Step]:
    """60 iterations through all stages, interrupted and resumed, with the restart from the best."""
    yield settings.part('60 iterations', 180, 'training')


def distributed(settings: Settings) -> Iterator[Step]:
    """torchrun over NCCL, or over gloo without a GPU."""
    yield settings.part('data', 60, 'data')
    processes = 2 if settings.small else 1
    yield settings.step(
        'torchrun', 120, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node',
        processes, 'tools/train.py', DEMO, '--launcher', 'pytorch', '--amp', '--work-dir',
        settings.out / 'distributed', '--epochs', 4, '--cfg-options',
        f'data_root={settings.out / "data"}', 'train_cfg.val_interval=4',
    )  # fmt: skip


def inference(settings: Settings) -> Iterator[Step]:
    """Latency of all forms of a model."""
    configs = ['configs/dfine_n.py', *([] if settings.small else ['configs/dfine_l.py'])]
    sizes = ('--size', 320, 320, '--rounds', 2) if settings.small else ('--batches', 1, 32)
    yield settings.step(
        'latency', 120, 'tools/benchmark.py', *configs, '--parts', 'latency', '--device',
        settings.device, *sizes, '--out', settings.out / 'inference',
    )  # fmt: skip


def tests(settings: Settings) -> Iterator[Step]:
    """The other tests that take a device: the files that speak of CUDA."""
    chosen = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / 'tests').glob('*/**/test_*.py'))
        if 'cuda' in path.read_text() and path.parent.name not in ('ops', 'tools')
    ]
    yield settings.tests('tests', 120, '-m', 'not slow', *chosen)


PARTS: dict[str, Callable[[Settings], Iterator[Step]]] = {
    part.__name__: part
    for part in (operators, precision, reads, training, steps, inference, distributed, tests)
}


def run(step: Step, log: Path, limit: float) -> dict:
    """Run a step; returns its seconds, its result, a message, and the figures that it printed.

    Figures are the lines of its output that are JSON objects. It is ended with all processes that
    it started when ``limit`` seconds are over.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, PYTHONUNBUFFERED='1', PYTHONWARNINGS='ignore')
    started = time.monotonic()
    with log.open('w') as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            result = 'passed' if code == 0 else 'failed' if code > 0 else 'crashed'
        except subprocess.TimeoutExpired:
            code, result = 0, 'took too long'
        finally:
            end_group(process)
    lines = log.read_text(errors='replace').splitlines()
    figures = list(filter(None, map(parsed, lines)))
    message = next((line for line in reversed(lines) if line.strip()), '')
    if code < 0:
        message = f'{signal.Signals(-code).name}: {message}'
    return dict(
        step=step.name,
        seconds=round(time.monotonic() - started, 1),
        result=result,
        message=message,
        figures=figures,
    )


def end_group(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def parsed(line: str) -> dict | None:
    """The JSON object that a line is; None where it is none."""
    try:
        found = json.loads(line) if line.startswith('{') else None
    except ValueError:
        return None
    return found


def table(rows: list[dict]) -> str:
    """The results as a table in Markdown."""
    lines = ['| part | step | seconds | result | last line |', '|---|---|---|---|---|']
    for row in rows:
        message = row['message'].strip().replace('|', '¦')
        lines.append(
            f'| {row["part"]} | {row["step"]} | {row["seconds"]:.1f} | {row["result"]} | '
            f'{message if len(message) <= 240 else message[:239] + "…"} |'
        )
    return '\n'.join(lines)


def check(parts: list[str], settings: Settings, minutes: float) -> list[dict]:
    """Run parts until their time is over, and write ``results.json`` after each step."""
    end = time.monotonic() + 60 * minutes
    rows = []
    for part in parts:
        for step in PARTS[part](settings):
            left = end - time.monotonic()
            if left < 1:
                row = dict(step=step.name, seconds=0.0, result='left out', message='', figures=[])
            else:
                log = settings.out / 'logs' / f'{part}_{step.name}.log'.replace(' ', '_')
                row = run(step, log, min(step.limit, left))
            rows.append(dict(part=part, **row))
            print(f'{part}, {step.name}: {row["result"]}', file=sys.stderr, flush=True)
            (settings.out / 'results.json').write_text(json.dumps(rows, indent=1) + '\n')
    return rows


def unpack(wheels: Path, target: Path) -> None:
    """Install wheels into a folder that the steps import from, without network."""
    names = sorted(map(str, wheels.glob('*.whl')))
    command = ('-m', 'pip', 'install', '--quiet', '--no-index', '--no-deps', '--upgrade')
    subprocess.run([sys.executable, *command, '--target', str(target), *names], check=True)
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
    parser.add_argument('--minutes', type=float, default=7.0, help='for all parts together')
    parser.add_argument('--wheels', type=Path, metavar='FOLDER', help='wheels to import from')
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f'there is no part {", ".join(unknown)}; there are {", ".join(PARTS)}')
    settings = Settings(args.device, args.out.resolve())
    settings.out.mkdir(parents=True, exist_ok=True)
    if args.wheels:
        unpack(args.wheels, settings.out / 'packages')
    added_to_path(ROOT)
    rows = check(args.parts or list(PARTS), settings, args.minutes)
    print(table(rows))
    sys.exit(any(row['result'] != 'passed' for row in rows))


if __name__ == '__main__':
    main()
