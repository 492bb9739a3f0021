"""Time of the training criterion against the same losses written down step by step.

    python benchmarks/criterion.py [--objects 30 100] [--repeats 15] [--threads 2] [--out FILE.json]

"plain" compares matched boxes one to one. "reference" compares all pairs of matched boxes and takes
the diagonal, as the reference implementations do. Predictions have the shapes of DEIM-D-FINE N at
batch 8: three layers, 300 queries, 80 classes, and denoising queries. Two thirds of the objects
have queries close to them, as in training. The implementations take turns; the figures are medians.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import deim_mmdet  # noqa: F401  (registers the components)
from deim_mmdet.models.layers.distribution import (
    bin_probabilities,
    distances_to_boxes,
    expected_distances,
    weighting_function,
)
from deim_mmdet.models.layers.predictions import Predictions
from deim_mmdet.models.losses import DFINECriterion, SetCriterion
from deim_mmdet.models.task_modules import Targets

import torch
from mmengine.registry import init_default_scope

sys.path.insert(0, str(Path(__file__).parents[1] / 'tests' / 'models' / 'losses'))
from plain_criterion import PlainCriterion

LAYERS, BATCH, QUERIES, CLASSES, REG_MAX = 3, 8, 300, 80, 32
UP, REG_SCALE = torch.tensor([0.5]), torch.tensor([4.0])


def boxes_near(objects: torch.Tensor, *shape: int) -> torch.Tensor:
    """Random boxes (*shape, B, Q, 4); some of the Q are close to the n objects (B, n, 4)."""
    batch, count = objects.shape[:2]
    boxes = torch.cat(
        [torch.rand(*shape, batch, QUERIES, 2), torch.rand(*shape, batch, QUERIES, 2) / 5], -1
    )
    close = objects[:, : count * 2 // 3].repeat_interleave(2, 1)[:, :QUERIES]
    boxes[..., : close.shape[1], :] = close + torch.randn(*shape, *close.shape) * 0.01
    return boxes.clamp(0.005, 0.995)


def case(objects: int, dfine: bool) -> tuple[list[dict], dict]:
    """Objects, and predictions with gradients."""
    shape = (BATCH, objects)
    boxes = torch.cat([torch.rand(*shape, 2) * 0.8 + 0.1, torch.rand(*shape, 2) * 0.2 + 0.02], -1)
    targets = [dict(labels=torch.randint(CLASSES, (objects,)), boxes=b) for b in boxes]
    groups = max(1, 100 // objects)

    def predictions(references: torch.Tensor):
        count = references.shape[1]
        scores = torch.randn(LAYERS, BATCH, count, CLASSES) - 4
        if not dfine:
            offsets = torch.randn(LAYERS, BATCH, count, 4) * 0.01
            return Predictions(
                scores.requires_grad_(), (references + offsets).clamp(0.005, 0.995).requires_grad_()
            )
        logits = torch.randn(LAYERS, BATCH, count, 4 * (REG_MAX + 1)).requires_grad_()
        bin_distances = weighting_function(REG_MAX, UP, REG_SCALE)
        distances = expected_distances(bin_probabilities(logits), bin_distances)
        layer_boxes = distances_to_boxes(references, distances, REG_SCALE)
        return Predictions(
            scores.requires_grad_(), layer_boxes, logits, references[None],
            scores[:1].detach().requires_grad_(), references[None].clone().requires_grad_(),
            bin_distances, REG_SCALE,
        )  # fmt: skip

    noised = boxes.repeat(1, groups * 2, 1)
    return targets, dict(
        matching=predictions(boxes_near(boxes)),
        encoder=(torch.randn(BATCH, QUERIES, CLASSES) - 4, boxes_near(boxes)),
        denoising=predictions((noised + torch.randn_like(noised) * 0.01).clamp(0.005, 0.995)),
        num_groups=groups,
    )


def implementations(targets: list[dict], inputs: dict, dfine: bool) -> dict:
    """The criteria, as functions without arguments that return the loss terms."""
    labels, boxes = ([target[key] for target in targets] for key in ('labels', 'boxes'))
    criterion = DFINECriterion() if dfine else SetCriterion()
    bins = (weighting_function(REG_MAX, UP, REG_SCALE), 4.0) if dfine else None
    plain, reference = (PlainCriterion('mal', bins, all_pairs) for all_pairs in (False, True))
    return dict(
        ours=lambda: criterion(**inputs, targets=Targets.from_lists(labels, boxes)),
        plain=lambda: plain(**inputs, targets=targets),
        reference=lambda: reference(**inputs, targets=targets),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--objects', type=int, nargs='+', default=[30, 100], help='of each image')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--out', type=Path, help='JSON file for the figures')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    init_default_scope('mmdet')
    # With one thread take the process's own time: other processes disturb it less.
    clock = time.process_time if args.threads == 1 else time.perf_counter
    rows = []
    for objects in args.objects:
        for dfine in (True, False):
            torch.manual_seed(0)
            targets, inputs = case(objects, dfine)
            functions = implementations(targets, inputs, dfine)
            terms = {name: function() for name, function in functions.items()}
            for key, value in terms['plain'].items():
                torch.testing.assert_close(terms['ours'][key], value, rtol=1e-3, atol=1e-4)
            forward, both = ({name: [] for name in functions} for _ in range(2))
            for _ in range(args.repeats):
                for name, function in functions.items():
                    start = clock()
                    total = sum(function().values())
                    forward[name].append(clock() - start)
                    total.backward(retain_graph=True)
                    both[name].append(clock() - start)
            row = dict(head='D-FINE' if dfine else 'RT-DETRv2', objects=objects)
            for part, times in dict(forward=forward, with_backward=both).items():
                medians = {name: statistics.median(values) for name, values in times.items()}
                row |= {f'{part}_{name}_ms': round(1e3 * t, 1) for name, t in medians.items()}
                for name in ('plain', 'reference'):
                    row[f'{part}_ratio_to_{name}'] = round(medians[name] / medians['ours'], 2)
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
