"""Time and memory of a training step against other implementations with the same weights.

    python benchmarks/training_step.py [--models dfine_n dfine_l] [--repeats 7] [--threads 2]

The others are the reference's own D-FINE, as pydfine has it, and that of transformers. All train
the D-FINE baseline on the same images and objects: N at batch 8 and 320×320 with 30 objects an
image, L at batch 2 and 640×640. Norms of the backbone are frozen, as transformers has them. A step
is forward, with denoising, losses and backward. The optimiser is the same for all and left out.
They take turns in one process. Times are medians; with one thread they are CPU time, which other
processes disturb less. Memory is the growth of the peak over the resident memory before the first
step, each in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import deim_mmdet  # noqa: F401  (registers the components)
from deim_mmdet.checkpoints.convert import find_weights, to_our_names
from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.checkpoints.reverse import to_reference_state_dict
from deim_mmdet.deployment.cpu import optimize_for_cpu

import torch
from measuring.reference_models import build_reference
from measuring.timing import peak_memory
from measuring.transformers_models import build_counterpart
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

ROOT = Path(__file__).parents[1]
OBJECTS = 30
OTHERS = ('reference', 'transformers')

# Batch and side of the images.
SIZES = dict(dfine_n=(8, 320), dfine_l=(2, 640))


def build(name: str) -> dict:
    """The models in training mode with the same weights, as functions that return the loss."""
    torch.manual_seed(0)
    batch, side = SIZES[name]
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py').model
    # transformers freezes the norms of the backbone, and nothing else of it.
    cfg.backbone.update(init_cfg=None, frozen_stem=False, norm_frozen=True)
    theirs = build_counterpart(cfg)
    # DEIMRunner does the same on a CPU.
    ours = optimize_for_cpu(MODELS.build(cfg))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        weights = find_weights(read_checkpoint(Path(folder) / 'model.safetensors'))
    ours.load_state_dict(to_our_names(weights), strict=False)
    reference, criterion = build_reference(cfg, side)
    names = to_reference_state_dict(
        ours.state_dict(), cfg.neck.feat_strides, cfg.bbox_head.num_points
    )
    # Anchors and their validity depend on the size of the images here.
    names |= {key: reference.state_dict()[key] for key in ('decoder.anchors', 'decoder.valid_mask')}
    reference.load_state_dict(names)
    for model in (ours, theirs, reference):
        model.train()
    images = torch.rand(batch, 3, side, side)
    boxes = torch.rand(batch, OBJECTS, 4) * 0.15 + 0.02
    boxes[..., :2] = torch.rand(batch, OBJECTS, 2) * 0.8 + 0.1
    classes = torch.randint(80, (batch, OBJECTS))
    samples = []
    for b, c in zip(boxes, classes, strict=True):
        sample = DetDataSample(metainfo=dict(img_shape=(side, side)))
        sample.gt_instances = InstanceData(bboxes=bbox_cxcywh_to_xyxy(b) * side, labels=c)
        samples.append(sample)
    targets = [dict(class_labels=c, labels=c, boxes=b) for b, c in zip(boxes, classes, strict=True)]
    return dict(
        ours=lambda: sum(ours.loss(images, samples).values()),
        reference=lambda: sum(criterion(reference(images, targets), targets).values()),
        transformers=lambda: theirs(pixel_values=images, labels=targets).loss,
    )


def measure_time(name: str, repeats: int) -> dict:
    """Median seconds of forward with losses, and of the whole step, of all models."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    steps = build(name)
    forward, whole = ({key: [] for key in steps} for _ in range(2))
    for repeat in range(repeats + 1):
        for key, step in steps.items():
            start = clock()
            loss = step()
            middle = clock()
            loss.backward()
            if repeat:
                forward[key].append(middle - start)
                whole[key].append(clock() - start)
    row = dict(model=name)
    for part, times in dict(forward=forward, step=whole).items():
        medians = {key: statistics.median(values) for key, values in times.items()}
        row |= {f'{part}_{key}_s': round(value, 3) for key, value in medians.items()}
        for key in OTHERS:
            row[f'{part}_ratio_to_{key}'] = round(medians[key] / medians['ours'], 2)
    return row


def measure_memory(name: str, key: str) -> None:
    """Print the MiB that two steps need at their peak, in this process."""
    step = build(name)[key]

    def two_steps() -> None:
        for _ in range(2):
            step().backward()

    print(round(peak_memory(two_steps)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', default=list(SIZES), choices=list(SIZES))
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--out', type=Path, help='JSON file for the figures')
    parser.add_argument('--memory-of', choices=['ours', *OTHERS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    init_default_scope('mmdet')
    if args.memory_of:
        measure_memory(args.models[0], args.memory_of)
        return
    rows = []
    for name in args.models:
        row = measure_time(name, args.repeats)
        for key in ('ours', *OTHERS):
            command = [sys.executable, __file__, '--models', name, '--memory-of', key]
            output = subprocess.check_output([*command, '--threads', str(args.threads)], text=True)
            row[f'memory_{key}_mib'] = int(output.split()[-1])
        for key in OTHERS:
            ratio = row['memory_ours_mib'] / row[f'memory_{key}_mib']
            row[f'memory_ratio_to_{key}'] = round(ratio, 2)
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
