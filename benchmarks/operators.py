"""Time and memory of deformable attention: compiled, in PyTorch (grid_sample), and MMCV's.

    python benchmarks/operators.py [--device cuda] [--threads 1 2] [--repeats 21] [--out FILE.json]

Shapes are those of DEIM-D-FINE N and L, in inference and training, and of Deformable DETR; MMCV's
operator takes the last too, where it is compiled (MMCV 2.1 has no kernel for CPUs). Points lie
around random boxes. First all forms are compared in output and gradients. Then they take turns;
figures are medians, and ratios are those of medians. Peak memory is what a call allocates at most,
with its results.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deim_mmdet.compat import provide_operators
from deim_mmdet.engine.devices import check_gpu_found
from deim_mmdet.ops import compiled, deformable_attention, pure_pytorch

import mmcv
import torch
from measuring.machine import processor
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from torch import Tensor

HEADS = 8


@dataclass
class Case:
    """Shapes of one call: (height, width) of each level, and each level's points a query."""

    name: str
    batch: int
    queries: int
    channels: int
    shapes: list[tuple[int, int]]
    num_points: list[int]

    def inputs(self, device: str) -> list[Tensor]:
        """Value, locations, weights and the output's gradient."""
        tokens, points = sum(h * w for h, w in self.shapes), sum(self.num_points)
        rows = (self.batch, self.queries, HEADS)
        centres, sizes = torch.rand(2, *rows[:2], 1, 1, 2)
        tensors = [
            torch.randn(self.batch, tokens, HEADS, self.channels),
            centres + torch.randn(*rows, points, 2) * (sizes * 0.35 + 0.05) / 2,
            torch.randn(*rows, points).softmax(-1),
            torch.randn(*rows[:2], HEADS * self.channels),
        ]
        return [tensor.to(device) for tensor in tensors]

    def forms(self, value: Tensor, locations: Tensor, weights: Tensor) -> dict[str, Callable]:
        """The forms, as functions without arguments that return the output."""
        common = (value, self.shapes, locations, weights, self.num_points)

        def in_pytorch():
            with pure_pytorch():
                return deformable_attention(*common)

        forms = dict(compiled=lambda: deformable_attention(*common), pytorch=in_pytorch)
        compiled_mmcv = not (value.is_cuda and provide_operators())
        if len(set(self.num_points)) == 1 and compiled_mmcv:
            split = (len(self.shapes), self.num_points[0])
            places, shares = locations.unflatten(3, split), weights.unflatten(3, split)
            shapes = torch.tensor(self.shapes, device=value.device)
            starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
            forms['mmcv'] = (
                lambda: MultiScaleDeformableAttnFunction.apply(
                    value, shapes, starts, places, shares, 64
                )
                if value.is_cuda
                else multi_scale_deformable_attn_pytorch(value, self.shapes, places, shares)
            )
        return forms


CASES = [
    Case('N, inference', 1, 300, 16, [(40, 40), (20, 20)], [6, 6]),
    Case('N, training at 320', 8, 500, 16, [(20, 20), (10, 10)], [6, 6]),
    Case('L, inference', 1, 300, 32, [(80, 80), (40, 40), (20, 20)], [3, 6, 3]),
    Case('L, training', 4, 500, 32, [(80, 80), (40, 40), (20, 20)], [3, 6, 3]),
    Case('4 points a level', 4, 500, 32, [(80, 80), (40, 40), (20, 20)], [4, 4, 4]),
]


def finish(device: str) -> None:
    """Wait until a GPU has done its work."""
    if device == 'cuda':
        torch.cuda.synchronize()


def seconds(function: Callable, device: str) -> float:
    """Seconds that a call takes, the device's work included."""
    finish(device)
    start = time.perf_counter()
    function()
    finish(device)
    return time.perf_counter() - start


def peak_bytes(function: Callable, device: str) -> int:
    """The most bytes that a call holds at one time, of those that it allocated itself."""
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        finish(device)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        results = function()
    del results
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]')
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def measure(case: Case, device: str, repeats: int) -> dict:
    """Compare the forms of a case, then time them in turn ``repeats`` times."""
    torch.manual_seed(0)
    *inputs, grad_out = case.inputs(device)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    forms = case.forms(*inputs)

    def with_backward(form: Callable) -> tuple[Tensor, ...]:
        return torch.autograd.grad(form(), inputs, grad_out)

    def forward(form: Callable) -> Tensor:
        with torch.no_grad():
            return form()

    for form in list(forms.values())[1:]:
        torch.testing.assert_close(forward(forms['compiled']), forward(form), atol=1e-4, rtol=1e-4)
        for ours, theirs in zip(with_backward(forms['compiled']), with_backward(form), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-3)
    row = dict(case=case.name, threads=torch.get_num_threads())
    for part, call in dict(forward=forward, with_backward=with_backward).items():
        calls = {name: functools.partial(call, form) for name, form in forms.items()}
        times = {name: [] for name in forms}
        for _ in range(repeats):
            for name, function in calls.items():
                times[name].append(seconds(function, device))
        medians = {name: statistics.median(values) for name, values in times.items()}
        peaks = {name: peak_bytes(function, device) for name, function in calls.items()}
        for name in forms:
            row[f'{part}_{name}_ms'] = round(1e3 * medians[name], 3)
            row[f'{part}_{name}_peak_mb'] = round(peaks[name] / 2**20, 2)
            if name != 'compiled':
                row[f'{part}_times_as_fast_as_{name}'] = round(
                    medians[name] / medians['compiled'], 2
                )
                row[f'{part}_memory_share_of_{name}'] = round(peaks['compiled'] / peaks[name], 2)
    return row


def machine(device: str) -> dict:
    """The properties of machine and software that the figures depend on."""
    found = dict(
        processor=f'{os.cpu_count()} × {processor()}',
        python=platform.python_version(),
        torch=torch.__version__,
        mmcv=mmcv.__version__,
        device=device,
    )
    if device == 'cuda':
        found |= dict(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2], help='on a CPU')
    parser.add_argument('--repeats', type=int, default=21)
    parser.add_argument('--out', type=Path, help='JSON file for the figures')
    args = parser.parse_args()
    if args.device == 'cuda':
        check_gpu_found(parser, '--device cuda')
    # Otherwise the profiler reports its start and end on stderr.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    if args.device not in compiled.DEVICES:
        parser.error(
            f'no compiled operators for {args.device} {compiled.MISSING}: docs/operators.md'
        )
    result = dict(machine=machine(args.device), rows=[])
    print(json.dumps(result['machine']), flush=True)
    for threads in args.threads if args.device == 'cpu' else [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        for case in CASES:
            result['rows'].append(measure(case, args.device, args.repeats))
            print(json.dumps(result['rows'][-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
