"""What a training would tell a GPU to do, on a machine without one.

    python benchmarks/simulated_training.py [--models dfine_n ...] [--side 640] [--batch 16]

It trains with all default hooks but those that save, in mixed precision, on a GPU that computes
nothing (measuring/simulated_gpu.py). For each model it prints the calls of operators of an
iteration, the places at which the host waits for the GPU or copies to it, the most memory that
tensors took, and the layers that get features channel by channel ("planes"), or in single
precision. Then it evaluates four batches. With --stages it trains five epochs instead, through all
stages, and prints where the host waits in each. Times and numbers can't be had so, nor the memory
that kernels take for their work.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import deim_mmdet  # noqa: F401  (before mmdet, where MMCV has no operators)
from deim_mmdet.engine.config import set_mixed_precision
from deim_mmdet.ops import compiled

import torch
import torch.nn.functional as F
from measuring.simulated_gpu import SimulatedGPU, library
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from torch.overrides import TorchFunctionMode
from trainer_iteration import ROOT, End, of_one_size, training

# Of the training: the first iterations make tables that stay.
ITERATIONS = 3
# Of a training through the four stages.
EPOCHS = 5
# Of the images.
CHANNELS = 3


class Convolutions(TorchFunctionMode):
    """Counts convolutions, and those that get features, not images, in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.single = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.conv2d:
            self.all += 1
            self.single += args[0].dtype == torch.float32 and args[0].shape[1] > CHANNELS
        return func(*args, **(kwargs or {}))


class Count(Hook):
    """Lets each iteration begin from 0."""

    def __init__(self, gpu: SimulatedGPU, convolutions: Convolutions) -> None:
        self.gpu, self.convolutions = gpu, convolutions

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.gpu.reset()
        self.convolutions.all = self.convolutions.single = 0


class Stages(Hook):
    """Notes where the host waits in each epoch.

    Attributes:
        waits: Places and numbers of an epoch, for each.
    """

    def __init__(self, gpu: SimulatedGPU) -> None:
        self.gpu = gpu
        self.waits: list[dict[str, int]] = []

    def before_train_epoch(self, runner) -> None:
        self.gpu.reset()

    def after_train_epoch(self, runner) -> None:
        self.waits.append(dict(self.gpu.waits))


def simulated_training(work: str, args: argparse.Namespace) -> Config:
    """Config of a training with tensors that have no numbers, and so can't be saved."""
    model, images = args.models[0], args.batch * (ITERATIONS + 1)
    cfg = training(ROOT, Path(work), model, args.side, args.batch, images)
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.default_hooks.checkpoint = None
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'EMARestartHook']
    if args.amp != 'fp32':
        set_mixed_precision(cfg, args.amp)
    return cfg


def simulate_iteration(gpu: SimulatedGPU, cfg: Config) -> dict:
    """Train for some iterations, and say what the last one did; then evaluate."""
    runner = RUNNERS.build(of_one_size(cfg))
    with Convolutions() as seen:
        runner.register_hook(Count(gpu, seen), priority='HIGHEST')
        runner.register_hook(End(ITERATIONS))
        with suppress(StopIteration):
            runner.train()
    found = dict(
        calls=gpu.calls.total(),
        waits=dict(gpu.waits),
        copies=dict(gpu.copies),
        planes=dict(gpu.planes),
        peak_mib=round(gpu.peak / 2**20),
        convolutions=seen.all,
        single=seen.single,
    )
    gpu.reset()
    runner.val_loop.run()
    return {**found, 'waits_of_evaluation': dict(gpu.waits)}


def simulate_stages(gpu: SimulatedGPU, cfg: Config) -> dict:
    """Train for a few epochs, through all stages, and say where the host waits in each."""
    cfg.train_cfg.update(max_epochs=EPOCHS, val_interval=EPOCHS)
    runner = RUNNERS.build(cfg)
    runner.register_hook(stages := Stages(gpu), priority='LOWEST')
    runner.train()
    return {f'epoch {number}': waits for number, waits in enumerate(stages.waits, 1)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--models', nargs='+', default=['dfine_n', 'dfine_l'])
    parser.add_argument('--side', type=int, default=640, help='side of the images in pixels')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--amp', choices=('fp16', 'bf16', 'fp32'), default='fp16')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='changes of the config')
    parser.add_argument(
        '--stages',
        action='store_true',
        help='train through all stages, and print the waits of each',
    )
    parser.add_argument('--json', action='store_true', help='print the figures as JSON')
    parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.child:
        # Compiled for a CPU it has no kernels for a GPU, but nothing computes here.
        compiled.DEVICES.append('cuda')
        with tempfile.TemporaryDirectory() as work, SimulatedGPU() as gpu:
            simulate = simulate_stages if args.stages else simulate_iteration
            print(json.dumps(simulate(gpu, simulated_training(work, args))))
        return
    results = {}
    for model in args.models:
        # The last one of an option given twice counts.
        command = [sys.executable, __file__, *sys.argv[1:], '--models', model, '--child']
        environment = {**os.environ, 'LD_PRELOAD': str(library())}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, check=True, text=True
        )
        results[model] = found = json.loads(done.stdout.splitlines()[-1])
        if args.json:
            continue
        for what, value in found.items():
            if isinstance(value, dict):
                value = ', '.join(f'{place} ({n})' for place, n in value.items()) or 'none'
            print(f'{model}, {what.replace("_", " ")}: {value}')
    if args.json:
        print(json.dumps(results))


if __name__ == '__main__':
    main()
