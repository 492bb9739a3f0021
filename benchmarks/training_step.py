"""Time and memory of a training step against other implementations with the same weights.

    python benchmarks/training_step.py [--models dfine_n dfine_l] [--repeats 7] [--threads 2]
    python benchmarks/training_step.py --device cuda --amp

The others are the reference's own D-FINE, as pydfine has it, and that of transformers. All train
the D-FINE baseline on the same images with 30 objects each: on a CPU N at batch 8 and 320×320, L at
batch 2 and 640×640; on a GPU N at batch 32 and L at batch 16, both at 640×640. Norms of the
backbone are frozen, as transformers has them. A step is forward, with denoising, losses and
backward. The optimiser is the same for all and left out. They take turns in one process.

Times are medians. On a CPU with one thread they are CPU time, which other processes disturb less.
On a GPU they are the times between events; host_… is the time until everything was enqueued. Memory
is the growth of the peak over what was held before the first step: on a CPU resident memory, each
in a process of its own, on a GPU the allocator's. Others that can't be imported are left
out, and named with the reason.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import deim_mmdet  # noqa: F401  (registers the components)
from deim_mmdet.checkpoints.convert import find_weights, to_our_names
from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.engine.devices import check_gpu_found, laid_out

import torch
from measuring.installed import reason_against
from measuring.losses import figures, time_losses
from measuring.reference_models import build_reference, load_our_weights
from measuring.timing import make_timer, peak_memory
from measuring.transformers_models import build_counterpart
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor

ROOT = Path(__file__).parents[1]
OBJECTS = 30
OTHERS = ('reference', 'transformers')

# Batch and side of the images.
SIZES = dict(
    cpu=dict(dfine_n=(8, 320), dfine_l=(2, 640)), cuda=dict(dfine_n=(32, 640), dfine_l=(16, 640))
)


def build(
    name: str, device: str, amp: bool, others: Collection[str] = OTHERS
) -> dict[str, Callable[[], Tensor]]:
    """The models in training mode with the same weights, as functions that return the loss.

    Args:
        name: A key of :data:`SIZES`.
        device: ``'cpu'`` or ``'cuda'``.
        amp: Mixed precision.
        others: Those of :data:`OTHERS` to build beside ours.
    """
    torch.manual_seed(0)
    batch, side = SIZES[device][name]
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py').model
    # transformers freezes the norms of the backbone, and nothing else of it.
    cfg.backbone.update(init_cfg=None, frozen_stem=False, norm_frozen=True)
    ours = MODELS.build(cfg)
    if 'transformers' in others:
        theirs = build_counterpart(cfg)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            weights = find_weights(read_checkpoint(Path(folder) / 'model.safetensors'))
        ours.load_state_dict(to_our_names(weights), strict=False)
        theirs.to(device).train()
    if 'reference' in others:
        reference, criterion = build_reference(cfg, side)
        load_our_weights(reference, ours.state_dict(), cfg)
        reference.to(device).train()
        criterion.to(device)
    ours = laid_out(ours.to(device), device, dict(channels_last=True)).train()
    images = torch.rand(batch, 3, side, side).to(device)
    boxes = torch.rand(batch, OBJECTS, 4) * 0.15 + 0.02
    boxes[..., :2] = torch.rand(batch, OBJECTS, 2) * 0.8 + 0.1
    classes = torch.randint(80, (batch, OBJECTS))
    samples = []
    for b, c in zip(boxes, classes, strict=True):
        sample = DetDataSample(metainfo=dict(img_shape=(side, side)))
        sample.gt_instances = InstanceData(bboxes=bbox_cxcywh_to_xyxy(b) * side, labels=c)
        samples.append(sample)
    targets = [
        dict(class_labels=c, labels=c, boxes=b)
        for b, c in zip(boxes.to(device), classes.to(device), strict=True)
    ]
    losses = dict(
        ours=lambda: sum(ours.loss(images, samples).values()),
        reference=lambda: sum(criterion(reference(images, targets), targets).values()),
        transformers=lambda: theirs(pixel_values=images, labels=targets).loss,
    )
    dtype = torch.float16 if device == 'cuda' else torch.bfloat16
    autocast = torch.autocast(device, dtype, enabled=amp)
    return {key: autocast(losses[key]) for key in ('ours', *others)}


def memory(step: Callable[[], Tensor], device: str) -> int:
    """MiB that two steps need at their peak."""

    def two_steps() -> None:
        for _ in range(2):
            step().backward()

    return round(peak_memory(two_steps, device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', default=list(SIZES['cpu']), choices=SIZES['cpu'])
    parser.add_argument('--device', default='cpu', choices=SIZES)
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU'
    )
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--out', type=Path, help='JSON file for the figures')
    parser.add_argument('--memory-of', choices=['ours', *OTHERS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == 'cuda':
        check_gpu_found(parser, '--device cuda')
    torch.set_num_threads(args.threads)
    init_default_scope('mmdet')
    reasons = {name: reason_against(name) for name in OTHERS}
    there = [name for name, reason in reasons.items() if not reason]
    if args.memory_of:
        step = build(args.models[0], args.device, args.amp, there)[args.memory_of]
        print(memory(step, args.device))
        return
    if left_out := {name: reason for name, reason in reasons.items() if reason}:
        print(json.dumps(dict(left_out=left_out)), flush=True)
    rows = []
    for name in args.models:
        # With one thread take the process's own time: other processes disturb it less.
        timer = make_timer(args.device, cpu_time=args.threads == 1)
        steps = build(name, args.device, args.amp, there)
        needed = {}
        for key, step in steps.items():
            if args.device == 'cuda':
                needed[key] = memory(step, args.device)
                continue
            command = [sys.executable, __file__, '--models', name, '--memory-of', key]
            command += ['--threads', str(args.threads), *['--amp'] * args.amp]
            needed[key] = int(subprocess.check_output(command, text=True).split()[-1])
        row = dict(model=name) | figures(time_losses(steps, args.repeats, timer), args.device)
        for key, value in needed.items():
            row[f'memory_{key}_mib'] = value
            if key != 'ours':
                row[f'memory_ratio_to_{key}'] = round(needed['ours'] / value, 2)
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
