"""Steps of check_gpu.sh that are no tool of their own: each prints its figures as a line of JSON.

python tools/dev/gpu_parts.py FUNCTION --out OUT [--device cpu]
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gpu_agreement import agreement, check_captured, put_into
from gpu_precision import precision
from gpu_trainings import (
    ROOT,
    distributed,
    iterations,
    reads,
    say,
    training,
    training_step,
)

if TYPE_CHECKING:
    from measuring.training import TrainingStep

# Calls of a step before those that are timed: algorithms are chosen, a graph is captured.
WARM_UP, CALLS = 4, 10
FORMS = ('compiled', 'captured')
# Forms of inference that take minutes to build.
SLOWLY_BUILT = ('compiled', 'tensorrt')
# Batches of the models.
STEPS, SMALL_STEPS = dict(dfine_n=32, dfine_l=16), dict(dfine_n=2)


def machine(args: argparse.Namespace) -> None:
    """Versions, and the C++ libraries in use: a mixture of them can end an interpreter."""
    from deim_mmdet.ops import compiled as library

    loaded = {
        line.split()[-1]
        for line in Path('/proc/self/maps').read_text().splitlines()
        if re.search(r'lib(stdc\+\+|gcc_s|gomp)\S*\.so', line)
    }
    versions = {
        name: subprocess.run([name, '--version'], capture_output=True, text=True, check=False)
        .stdout.strip()
        .splitlines()[-1 if name == 'nvcc' else 0 :][:1]
        for name in ('g++', 'nvcc')
        if shutil.which(name)
    }
    say(
        gpu=torch.cuda.get_device_name() if args.device == 'cuda' else None,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        compilers=versions,
        libraries=sorted(loaded),
        operators=library.DEVICES,
    )
    if args.device not in library.DEVICES:
        sys.exit(f'no operators were compiled for {args.device}: {library.MISSING}')


def steps(args: argparse.Namespace) -> None:
    """Times of training steps of N and L: eager, in the trainer, and captured.

    In one process, whose start and first steps take longer than those that are timed.
    """
    timed = SMALL_STEPS if args.device == 'cpu' else STEPS
    for name, batch in timed.items():
        time_step(name, batch, 'eager', args.device)
        iterations(f'deim_{name}', batch, args.device)
        if args.device == 'cuda':
            time_step(name, batch, 'captured', args.device)
    # Last: what comes after a profiler is slower.
    for name, batch in timed.items() if args.device == 'cuda' else ():
        count_kernels(name, batch)


def compiled(args: argparse.Namespace) -> None:
    """Times of a compiled training step of N."""
    for name, batch in SMALL_STEPS.items():
        time_step(name, batch if args.device == 'cpu' else STEPS[name], 'compiled', args.device)


def warm_step(name: str, batch: int, form: str, device: str) -> tuple['TrainingStep', float]:
    """A model's training step in one form, after some calls; and the seconds of the first one."""
    from deim_mmdet.engine.config import load_config

    cfg = load_config(f'configs/{name}.py', dict(image_size=64) if device == 'cpu' else {})
    timed = training_step(cfg, batch, device)
    put_into(timed.model, form)
    begin = time.perf_counter()
    timed()
    first = time.perf_counter() - begin
    for _ in range(WARM_UP):
        timed()
    check_captured(timed.model)
    return timed, first


def time_step(name: str, batch: int, form: str, device: str) -> None:
    """Times and memory of a training step."""
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    from measuring.timing import peak_memory

    timed, first = warm_step(name, batch, form, device)
    # Beyond what is held before: weights, the optimiser's state, and the memory of graphs.
    held = torch.cuda.memory_allocated() / 2**20 if device == 'cuda' else 0
    memory = peak_memory(timed, device)
    timed.spans.clear()
    # The first isn't counted.
    for _ in range(1 + CALLS):
        timed()
    say(
        model=name,
        batch=batch,
        form=form,
        **{
            f'{clock}_ms': {k: round(t.median, 2) for k, t in timed.timings(clock).items()}
            for clock in ('device', 'host')
        },
        memory_mib=memory and round(held + memory),
        of_it_held_mib=round(held),
        first_step_s=round(first, 1),
    )


def latency(args: argparse.Namespace) -> None:
    """Latency of a model in the forms of ``--backends``; without it in all that are soon built.

    Those that can't be measured here are named, with the reason.
    """
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    from measuring.installed import reason_against
    from measuring.latency import BACKENDS

    soon_built = args.backends is None
    asked = args.backends or [n for n in BACKENDS[args.device] if n not in SLOWLY_BUILT]
    reasons = {name: reason_against(name) for name in asked}
    if left_out := {name: reason for name, reason in reasons.items() if reason}:
        say(left_out=left_out)
    there = [name for name in asked if not reasons[name]]
    if not there:
        return
    small = args.device == 'cpu'
    options = ['--size', '320', '320', '--rounds', '2']
    if not small:
        options = ['--batches', '1', *['32'] * soon_built, '--rounds', '4', '--threads', '8']
    # Each by itself, so that its figures stay where the next one takes too long.
    for name in STEPS if soon_built and not small else SMALL_STEPS:
        out = args.out / 'inference' / '_'.join([name, *there])
        command = [sys.executable, 'tools/benchmark.py', f'configs/{name}.py', '--parts', 'latency']
        command += ['--device', args.device, '--backends', *there, *options, '--out', str(out)]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            # What it printed last is the reason.
            sys.exit(code)
        say(**json.loads((out / 'results.json').read_text()))


def count_kernels(name: str, batch: int) -> None:
    """Number of kernels of an eager step, and the milliseconds that the GPU works for them."""
    from torch.profiler import ProfilerActivity, profile

    timed, _ = warm_step(name, batch, 'eager', 'cuda')
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        timed()
    times = [
        event.time_range.elapsed_us()
        for event in record.events()
        if event.device_type.name == 'CUDA' and not getattr(event, 'is_user_annotation', False)
    ]
    say(model=name, kernels=len(times), kernels_ms=round(sum(times) / 1e3, 1))


def main() -> None:
    functions = (
        machine, precision, reads, steps, compiled, agreement, latency, training, distributed,
    )  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('function', choices=[function.__name__ for function in functions])
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--form', choices=FORMS, help='of the training in the agreement')
    parser.add_argument('--backends', nargs='+', help='of the latency')
    args = parser.parse_args()
    import deim_mmdet  # noqa: F401  (registers the components)

    globals()[args.function](args)


if __name__ == '__main__':
    main()
