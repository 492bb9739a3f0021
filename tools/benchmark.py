"""Measure parameters, FLOPs, latency, training step, pipeline and memory of configs.

    python tools/benchmark.py CONFIG [CONFIG ...] [--backends pytorch fused ...] [--out DIR]

Times are those of this machine's CPU or, with --device cuda, of its GPU. Candidates take turns, so
that other work on the machine disturbs all of them alike. On a CPU each has a process of its own.
Results are medians, percentiles and ratios. They are printed as tables and written to DIR as
results.json and accuracy_latency.png.
"""

import argparse
import contextlib
import functools
import json
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import deim_mmdet  # noqa: F401  (registers the components)
from deim_mmdet.deployment.inputs import network_size
from deim_mmdet.deployment.onnx_export import check_size, export_onnx
from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.devices import check_gpu_found
from deim_mmdet.engine.faults import EXPLAINED, MISTAKES, check_writable, without_traceback
from deim_mmdet.models.layers.input_channels import input_channels

import mmdet.models  # noqa: F401  (registers the detectors)
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))
try:
    from measuring.counterparts import check_counterpart, missing_counterpart
    from measuring.installed import reason_against
    from measuring.latency import BACKENDS, EXPORTED, Candidate
    from measuring.machine import processor
    from measuring.report import Results, as_json, as_text, plot
    from measuring.timing import alternate, peak_memory
    from measuring.training import TrainingStep, pipeline_speed
except ModuleNotFoundError as error:
    if error.name != 'measuring':
        raise
    sys.exit(
        'benchmark.py runs in a checkout of deim_mmdet only: it needs the folder benchmarks of the '
        f'repository, which is not in an installed package and not at {sys.path[0]}'
    )

#: Measured only where they are asked for: compiling and TensorRT's building take minutes, and the
#: reference knows D-FINE only.
UNASKED = ('compiled', 'reference', 'tensorrt')

#: Number of timed calls in a candidate's turn.
CALLS = 4

PARTS = ('latency', 'training', 'pipeline')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='paths of configs')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=['latency', 'training'])
    parser.add_argument('--device', choices=BACKENDS, default='cpu')
    parser.add_argument(
        '--backends',
        nargs='+',
        metavar='BACKEND',
        help='; '.join(f'{device}: {", ".join(names)}' for device, names in BACKENDS.items())
        + f'. Default: all that are installed but {", ".join(UNASKED)}',
    )
    parser.add_argument('--batches', nargs='+', type=int, default=[1], help='batch sizes')
    parser.add_argument(
        '--size', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'), help="default: the config's"
    )
    parser.add_argument(
        '--rounds', type=int, default=10, help=f'turns of each candidate, of {CALLS} calls'
    )
    parser.add_argument('--threads', type=int, default=1, help='threads of every runtime')
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='count the time that the process computes, instead of the time that passes: steadier '
        'on a busy machine, with one thread',
    )
    parser.add_argument('--train-batch', type=int, default=2, help='images of a training step')
    parser.add_argument('--amp', action='store_true', help='training step in mixed precision')
    parser.add_argument('--images', type=int, default=64, help='images timed a pipeline stage')
    parser.add_argument('--out', type=Path, help='folder for results.json and the plot')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help="in place of the config's"
    )
    args = parser.parse_args()
    for option in ('rounds', 'threads', 'train_batch', 'images'):
        if getattr(args, option) < 1:
            parser.error(f'--{option.replace("_", "-")} must be at least 1')
    if args.cpu_time and args.threads > 1:
        parser.error('--cpu-time adds up the threads: use it with --threads 1')
    if args.device == 'cuda':
        if args.cpu_time:
            parser.error('--cpu-time is for --device cpu: a GPU computes outside of the process')
        check_gpu_found(parser, '--device cuda')
    there = BACKENDS[args.device]
    args.chosen = args.backends is not None
    if not args.chosen and 'latency' in args.parts:
        args.backends = without_those(
            {name: reason_against(name) for name in there if name not in UNASKED}
        )
    for name in args.backends or ():
        if name not in there:
            parser.error(
                f'--backends {name}: with --device {args.device} there are {", ".join(there)}'
            )
    return args


def without_those(reasons: dict[str, str]) -> list[str]:
    """The backends without a reason against them; the others are named on standard error."""
    for name in filter(reasons.get, reasons):
        print(f'{name} is left out: {reasons[name]}', file=sys.stderr)
    return [name for name, reason in reasons.items() if not reason]


def build(cfg: Config) -> nn.Module:
    """The config's detector in evaluation mode, with random weights."""
    cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model).eval()


def count_flops(model: nn.Module, size: tuple[int, int]) -> float:
    """FLOPs of one image; a multiply-add counts as two, as in the papers."""
    analyzer = FlopAnalyzer(model, torch.zeros(1, input_channels(model), *size))
    # Operators that aren't counted, such as activations, cost little beside convolutions.
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return 2.0 * analyzer.total()


def measure(path: str, args: argparse.Namespace) -> Results:
    """Measure all requested parts of one config."""
    with without_traceback(*MISTAKES):
        cfg = load_config(path, args.cfg_options)
        size = network_size(cfg) if args.size is None else tuple(args.size)
        model = build(cfg)
        check_size(size, model)
        backends = chosen_backends(cfg, args) if 'latency' in args.parts else []
        if 'pipeline' in args.parts:
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
    name = Path(path).stem
    same = [other for other in args.configs if Path(other).stem == name]
    results = Results(
        # Several configs may have one name, in several folders; then the path names them.
        config=name if len(same) == 1 else path,
        size=size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=count_flops(model, size),
    )
    if 'latency' in args.parts:
        measure_latency(cfg, model, results, backends, args)
    if 'pipeline' in args.parts:
        results.pipeline = pipeline_speed(dataset, args.images)
    if 'training' in args.parts:
        step = TrainingStep(
            model, cfg.optim_wrapper, args.train_batch, size, device=args.device, amp=args.amp
        )
        results.memory['training step'] = peak_memory(step, args.device)
        for _ in range(max(args.rounds // 2, 2)):
            step()
        results.training = step.timings()
        if args.device == 'cuda':
            results.training_host = step.timings('host')
    return results


def chosen_backends(cfg: Config, args: argparse.Namespace) -> list[str]:
    """The backends to measure a config's model in.

    Raises:
        ImportError: One that was asked for isn't installed.
        ValueError: It has no such model.
    """
    if not args.chosen:
        return without_those({name: missing_counterpart(name, cfg.model) for name in args.backends})
    for backend in args.backends:
        if reason := reason_against(backend):
            raise ImportError(reason)
        check_counterpart(backend, cfg.model)
    return args.backends


def measure_latency(
    cfg: Config,
    model: nn.Module,
    results: Results,
    backends: list[str],
    args: argparse.Namespace,
) -> None:
    """Time the backends and measure their memory; the figures go into ``results``."""
    with contextlib.ExitStack() as stack:
        onnx_path = None
        if EXPORTED.keys() & backends:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            # TensorRT keeps the types of the file.
            half = 'tensorrt' in backends
            onnx_path = export_onnx(model, folder / 'model.onnx', results.size, half=half)
        names = [name for name in BACKENDS[args.device] if name in backends]

        def start(name: str) -> Candidate:
            return Candidate(name, cfg.model, results.size, onnx_path, args.threads, args.device)

        # All at once: each imports the package anew.
        threads = stack.enter_context(ThreadPoolExecutor())
        started = map(stack.enter_context, threads.map(start, names))
        candidates = dict(zip(names, started, strict=True))
        for batch in args.batches:
            results.latency[batch] = alternate(
                {
                    name: functools.partial(candidate.seconds, batch, CALLS, args.cpu_time)
                    for name, candidate in candidates.items()
                },
                args.rounds,
            )
            for name, candidate in candidates.items():
                results.memory[f'{name}, batch {batch}'] = candidate.peak_memory(batch)


def machine(device: str) -> dict[str, str | int]:
    """The machine's properties that the times on a device depend on."""
    return dict(
        cpu=processor(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        **(dict(gpu=torch.cuda.get_device_name()) if device == 'cuda' else {}),
    )


@without_traceback(*EXPLAINED)
def main() -> None:
    args = parse_args()
    init_default_scope('mmdet')
    torch.set_num_threads(args.threads)
    if args.out is not None:
        check_writable(args.out, 'the folder', '--out')
    all_results = []
    for config in args.configs:
        all_results.append(measure(config, args))
        print(as_text(all_results[-1]), flush=True)
    if args.out is not None:
        path = args.out / 'results.json'
        content = dict(
            machine=machine(args.device), results=[as_json(results) for results in all_results]
        )
        path.write_text(json.dumps(content, indent=1))
        print(path)
        plot(all_results, args.out / 'accuracy_latency.png')
        print(args.out / 'accuracy_latency.png')


if __name__ == '__main__':
    main()
