"""Steps of check_gpu.sh that are no tool of their own: each prints its figures as a line of JSON.

python tools/dev/gpu_parts.py machine|data|precision|reads|iterations|training --out OUT
"""

import argparse
import contextlib
import copy
import json
import math
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
DEMO = 'configs/demo/deim_dfine_demo.py'
IMAGES, BATCH, EPOCHS = 40, 8, 12
# The epoch after which the training is interrupted: within the dense stage.
INTERRUPTED = 5
STAGES = ('warm-up', 'dense', 'flat', 'no-augmentation')
# Before these iterations of the demo everything is built and settled.
SETTLED = 6


def say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def machine(args: argparse.Namespace) -> None:
    """Versions, and the C++ libraries in use: a mixture of them can end an interpreter."""
    from deim_mmdet.ops import compiled

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
        operators=compiled.DEVICES,
    )
    if args.device not in compiled.DEVICES:
        sys.exit(f'no operators were compiled for {args.device}: {compiled.MISSING}')


def data(args: argparse.Namespace) -> Path:
    """Make pictures with digits, if they aren't there; returns their folder."""
    sys.path.insert(0, str(ROOT / 'tools/demo'))
    from make_dataset import SceneSettings, make_dataset

    settings = SceneSettings(
        train=IMAGES,
        val=16,
        size=(128, 128),
        objects=(1, 3),
        scale=(0.3, 0.7),
        digits=(0, 2, 3, 4),
    )
    make_dataset(args.out / 'data', settings)
    return args.out / 'data'


def random_batch(batch: int, side: int, classes: int, objects: int = 20) -> tuple:
    """Images (B, 3, side, side) and their samples, on the CPU."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
    from mmengine.structures import InstanceData

    samples = []
    for _ in range(batch):
        boxes = torch.rand(objects, 4) * 0.15 + 0.02
        boxes[:, :2] = torch.rand(objects, 2) * 0.8 + 0.1
        sample = DetDataSample(
            metainfo=dict(img_shape=(side, side), batch_input_shape=(side, side))
        )
        sample.gt_instances = InstanceData(
            bboxes=bbox_cxcywh_to_xyxy(boxes) * side, labels=torch.randint(classes, (objects,))
        )
        samples.append(sample)
    return torch.rand(batch, 3, side, side), samples


def precision(args: argparse.Namespace) -> None:
    """Errors of D-FINE-N's loss terms, relative to the loss, and gradients; float64 is the truth.

    There are no denoising queries: their noise differs between types.
    """
    from deim_mmdet.engine.config import load_config

    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    cfg = load_config('configs/dfine_n.py').model
    cfg.backbone.init_cfg, cfg.bbox_head.denoising = None, None
    small = args.device == 'cpu'
    images, samples = random_batch(2 if small else 8, 64 if small else 640, 80)
    model = MODELS.build(cfg).to(args.device).train()
    halves = [torch.bfloat16] if small else [torch.bfloat16, torch.float16]
    truth, failures = None, []
    for dtype in (torch.float64, torch.float32, *halves):
        wide = dtype if dtype == torch.float64 else torch.float32
        trained = copy.deepcopy(model).to(wide)
        with torch.autocast(args.device, dtype, enabled=dtype in halves):
            losses = trained.loss(
                images.to(args.device, wide), [sample.to(args.device) for sample in samples]
            )
            total, terms = trained.parse_losses(losses)
        scale = 1024 if dtype == torch.float16 else 1
        (total * scale).backward()
        terms = {name: float(value) for name, value in terms.items()}
        gradients = {
            name: parameter.grad.double() / scale
            for name, parameter in trained.named_parameters()
            if parameter.grad is not None
        }
        if truth is None:
            truth, loss = (terms, gradients), terms['loss']
            continue
        # As shares of the whole loss: a term may be 0.
        errors = {name: abs(value / loss - truth[0][name] / loss) for name, value in terms.items()}
        worst = max(errors.keys() - {'loss'}, key=errors.get)
        difference = math.hypot(*(float((gradients[n] - g).norm()) for n, g in truth[1].items()))
        figures = dict(
            loss_error=errors['loss'],
            worst_term=worst,
            worst_term_error=errors[worst],
            gradient_error=difference / math.hypot(*(float(g.norm()) for g in truth[1].values())),
        )
        say(type=str(dtype), **figures)
        if not figures['loss_error'] < (0.05 if dtype in halves else 1e-3):
            failures.append(f'loss in {dtype}')
        if not math.isfinite(figures['gradient_error']):
            failures.append(f'gradients in {dtype}')
    if failures:
        sys.exit(f'too far from float64: {", ".join(failures)}')


def reads(args: argparse.Namespace) -> None:
    """Train the demo until all is settled; then look for reads that wait for the GPU.

    One iteration lists them all, the next one stops at the first. Those within ``allowed_sync`` are
    meant.
    """
    from deim_mmdet.engine.config import load_config

    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS, RUNNERS

    seen, scope = Counter(), contextlib.ExitStack()
    modes = {SETTLED: 'warn', SETTLED + 1: 'error'} if args.device == 'cuda' else {}

    def set_mode(mode: str) -> None:
        if args.device == 'cuda':
            torch.cuda.set_sync_debug_mode(mode)

    def note(
        message: Warning | str, category: type, filename: str, lineno: int, *_: object
    ) -> None:
        if 'synchronizing' in str(message):
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
    cfg.custom_hooks += [dict(type='WatchReads'), dict(type='StopWatching')]
    runner = RUNNERS.build(cfg)
    with scope, contextlib.suppress(KeyboardInterrupt):
        scope.enter_context(warnings.catch_warnings())
        warnings.simplefilter('always')
        warnings.showwarning = note
        try:
            runner.train()
        finally:
            set_mode('default')
            say(unmarked_reads=dict(seen) if modes else 'not seen without a GPU')
    if seen:
        sys.exit(f'{seen.total()} unmarked reads in an iteration')


def training_command(args: argparse.Namespace, work_dir: Path, *options: str) -> list[str]:
    settings = {
        'data_root': data(args),
        'train_dataloader.batch_size': BATCH,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.logger.interval': 1,
    }
    if args.device == 'cpu':
        settings['image_size'] = 64
    return [
        *(sys.executable, 'tools/train.py', DEMO, '--amp', '--work-dir', str(work_dir), *options),
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


def iterations(args: argparse.Namespace) -> None:
    """Seconds of an iteration of the trainer in mixed precision, the demo's model."""
    from deim_mmdet.engine.history import read_history

    work_dir = args.out / f'iterations{"".join(args.train_option)}'
    shutil.rmtree(work_dir, ignore_errors=True)
    run(training_command(args, work_dir, '--epochs', '4', *args.train_option))
    lines = list(read_history(work_dir).train.values())[SETTLED:]
    say(
        options=args.train_option,
        iteration_ms=round(1e3 * statistics.median(line['time'] for line in lines), 2),
        data_ms=round(1e3 * statistics.median(line['data_time'] for line in lines), 2),
        loss=lines[-1]['loss'],
    )


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
            'resuming': f'within stage {STAGES[1]}' in after,
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


def main() -> None:
    functions = (machine, data, precision, reads, iterations, training)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('function', choices=[function.__name__ for function in functions])
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--train-option', action='append', default=[], help='of tools/train.py')
    args = parser.parse_args()
    import deim_mmdet  # noqa: F401  (registers the components)

    globals()[args.function](args)


if __name__ == '__main__':
    main()
