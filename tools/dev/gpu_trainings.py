"""Steps of check_gpu.sh that train the demo; gpu_parts.py runs them."""

import argparse
import contextlib
import copy
import gc
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from measuring.training import TrainingStep
    from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
DEMO = 'configs/demo/deim_dfine_demo.py'
IMAGES, BATCH, EPOCHS = 40, 8, 12
# Side of the images on a CPU.
SMALL = 64
# The epoch after which the training is interrupted: within the dense stage, which are two.
INTERRUPTED = 4
STAGES = ('warm-up', 'dense', 'flat', 'no-augmentation')
# After so many iterations everything is built and settled.
SETTLED = 6
# Iterations of the trainer that are timed, and the processes that load their data.
ITERATIONS, WORKERS = 26, 12


def say(**figures: object) -> None:
    """Print figures as a line of JSON."""
    print(json.dumps(figures), flush=True)


def data(args: argparse.Namespace) -> Path:
    """Make pictures with digits, if they aren't there; returns their folder."""
    sys.path.insert(0, str(ROOT / 'tools/demo'))
    from make_dataset import SceneSettings, make_dataset

    settings = SceneSettings(
        train=IMAGES, val=16, size=(128, 128), objects=(1, 3), scale=(0.3, 0.7), digits=(0, 2, 3, 4)
    )
    # Steps run side by side, and each makes its own.
    folder = args.out / f'data_{args.function}'
    make_dataset(folder, settings)
    return folder


def reads(args: argparse.Namespace) -> None:
    """Train the demo with --amp until all is settled; then look for reads that wait for the GPU.

    One iteration lists them all, the next one stops at the first. Those within ``allowed_sync`` are
    meant.
    """
    from deim_mmdet.engine.config import load_config, set_mixed_precision

    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS, RUNNERS

    seen = Counter()
    modes = {SETTLED: 'warn', SETTLED + 1: 'error'} if args.device == 'cuda' else {}

    def set_mode(mode: str) -> None:
        if args.device == 'cuda':
            torch.cuda.set_sync_debug_mode(mode)

    def note(
        message: Warning | str, category: type, filename: str, lineno: int, *_: object
    ) -> None:
        # torch also warns of this mode itself.
        if 'called a synchronizing' in str(message):
            seen[f'{os.path.relpath(filename, ROOT)}:{lineno}'] += 1

    @HOOKS.register_module()
    class WatchReads(Hook):
        priority = 'HIGHEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            set_mode(modes.get(runner.iter, 'default'))

    @HOOKS.register_module()
    class StopWatching(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            set_mode('default')
            if runner.iter == SETTLED + 1:
                raise KeyboardInterrupt

    cfg = load_config(DEMO, dict(data_root=str(data(args)), image_size=64))
    cfg.work_dir, cfg.launcher = str(args.out / 'reads'), 'none'
    set_mixed_precision(cfg, 'fp16')
    cfg.env_cfg.cudnn_benchmark = False
    cfg.custom_hooks += [dict(type='WatchReads'), dict(type='StopWatching')]
    runner = RUNNERS.build(cfg)
    with contextlib.suppress(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = note
        try:
            runner.train()
        finally:
            set_mode('default')
            say(unmarked_reads=dict(seen) if modes else 'not seen without a GPU')
    if seen:
        sys.exit(f'{seen.total()} unmarked reads in an iteration')


def training_command(
    args: argparse.Namespace, work_dir: Path, *options: str, **settings: object
) -> list[str]:
    """The demo's training, with --amp on a GPU and all iterations in the log; its data are made."""
    settings = {
        'data_root': data(args),
        'train_dataloader.batch_size': BATCH,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.logger.interval': 1,
        'log_processor.window_size': 1,
        **settings,
    }
    if args.device == 'cpu':
        settings['image_size'] = SMALL
    else:
        # The size changes all the time, and cuDNN would try out its algorithms for each.
        settings['env_cfg.cudnn_benchmark'] = False
        options += ('--amp',)
    return [
        *(sys.executable, 'tools/train.py', DEMO, '--work-dir', str(work_dir), *options),
        *('--cfg-options', *(f'{key}={value}' for key, value in settings.items())),
    ]


def run(command: list[str]) -> str:
    """Run a command in the checkout and give its output, or end as it does."""
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(f'{done.stdout[-6000:]}\nexit code {done.returncode}: {" ".join(command)}')
    return done.stdout


def training_step(cfg: 'Config', batch: int, device: str) -> 'TrainingStep':
    """A config's training step on random images, as the trainer makes it.

    Precision is mixed on a GPU. Many CPUs take ten times as long for that: of the steps for them
    only ``reads`` tries it.
    """
    from deim_mmdet.deployment.inputs import network_size
    from deim_mmdet.engine.devices import set_precision

    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    sys.path.insert(0, str(ROOT / 'benchmarks'))
    from measuring.training import TrainingStep

    init_default_scope('mmdet')
    torch.manual_seed(0)
    set_precision(device, cfg.env_cfg)
    torch.backends.cudnn.benchmark = cfg.env_cfg.cudnn_benchmark
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    size = network_size(cfg)
    return TrainingStep(model, cfg.optim_wrapper, batch, size, 20, device, amp=device == 'cuda')


def iterations(name: str, batch: int, device: str) -> None:
    """Iterations of the trainer with all default hooks, and bare steps of the same model."""
    from deim_mmdet.engine.config import set_mixed_precision

    from mmengine.registry import RUNNERS

    sys.path.insert(0, str(ROOT / 'benchmarks'))
    from trainer_iteration import End, of_one_size
    from trainer_iteration import training as config

    small = device == 'cpu'
    with tempfile.TemporaryDirectory() as work:
        # One batch more than is needed, so that no epoch ends.
        side, images = SMALL if small else 640, batch * (ITERATIONS + 1)
        cfg = of_one_size(config(ROOT, Path(work), name, side, batch, images))
        cfg.train_dataloader.num_workers = min(WORKERS, len(os.sched_getaffinity(0)))
        # One that is made for another training writes into that one's folder.
        cfg.visualizer.name = name
        step_of = copy.deepcopy(cfg)
        if not small:
            set_mixed_precision(cfg, 'fp16')
        runner = RUNNERS.build(cfg)
        runner.register_hook(End(ITERATIONS))
        with contextlib.suppress(StopIteration):
            runner.train()
        iteration, data = (
            1e3 * statistics.median(runner.message_hub.get_scalar(f'train/{key}').data[0][SETTLED:])
            for key in ('time', 'data_time')
        )
        # Its tensors leave the GPU, and nothing reads its data any more.
        del runner
        gc.collect()
    step = training_step(step_of, batch, device)
    for _ in range(ITERATIONS):
        step()
    step.spans = step.spans[SETTLED:]
    bare = step.timings()['total'].median
    say(
        model=name,
        batch=batch,
        iteration_ms=round(iteration, 2),
        of_it_waiting_for_data_ms=round(data, 2),
        bare_step_ms=round(bare, 2),
        times_the_bare_step=round(iteration / bare, 3),
    )


def distributed(args: argparse.Namespace) -> None:
    """The demo's training by torchrun, 4 epochs."""
    launch = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node')
    processes = '2' if args.device == 'cpu' else '1'
    work_dir = args.out / 'distributed'
    shutil.rmtree(work_dir, ignore_errors=True)
    python, *command = training_command(args, work_dir, '--launcher', 'pytorch', '--epochs', '4')
    print(run([python, *launch, processes, *command])[-2000:])


def training(args: argparse.Namespace) -> None:
    """The demo's training: killed within the dense stage, resumed, restarted from the best."""
    from deim_mmdet.engine.history import read_history

    work_dir = args.out / 'training'
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    command = training_command(args, work_dir, '--epochs', str(EPOCHS), '--resume')
    with (work_dir / 'output.log').open('w+') as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None and not latest(work_dir, INTERRUPTED):
                time.sleep(0.05)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        before = log.read()
    if not latest(work_dir, INTERRUPTED):
        sys.exit(f'{before[-6000:]}\nthe training ended before it could be interrupted')
    after = run(command)
    history = read_history(work_dir)
    losses = [line['loss'] for line in history.train.values()]
    missing = [
        what
        for what, found in {
            **{f'stage {stage}': f'stage {stage} begins' in before + after for stage in STAGES},
            'resuming': f'Epoch 1 of {EPOCHS}' not in after,
            'the restart of the EMA': 'restart from the best checkpoint' in after,
            f'{EPOCHS * IMAGES // BATCH} iterations': (
                max(history.train) == EPOCHS * IMAGES // BATCH
            ),
            'finite losses': all(map(math.isfinite, losses)),
            'a lower loss': statistics.mean(losses[-5:]) < statistics.mean(losses[:5]),
        }.items()
        if not found
    ]
    say(
        losses=[round(loss, 3) for loss in losses[:: len(losses) // 6]],
        iteration_ms=round(1e3 * statistics.median(v['time'] for v in history.train.values()), 2),
        ap={epoch: line.get('coco/bbox_mAP') for epoch, line in history.val.items()},
    )
    if missing:
        sys.exit(f'{after[-3000:]}\nnot found in the log: {", ".join(missing)}')


def latest(work_dir: Path, epoch: int) -> bool:
    """Whether the training has saved a checkpoint of this epoch or a later one."""
    pointer = work_dir / 'last_checkpoint'
    number = re.search(r'epoch_(\d+)', pointer.read_text()) if pointer.exists() else None
    return bool(number) and int(number[1]) >= epoch
