"""Time of the training criterion against the same losses written down step by step.

    python benchmarks/criterion.py [--objects 30 100] [--repeats 15] [--threads 2] [--device cuda]

"plain" compares matched boxes one to one. "reference" compares all pairs of matched boxes and takes
the diagonal, as the reference implementations do. Predictions have the shapes of DEIM-D-FINE N at
batch 8: three layers, 300 queries, 80 classes, and denoising queries. Two thirds of the objects
have queries close to them, as in training. The implementations take turns; the figures are medians.
On a GPU they are the times between events; host_… is the time until everything was enqueued.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import deim_mmdet  # noqa: F401  (registers the components)
from deim_mmdet.engine.devices import check_gpu_found
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
from measuring.losses import figures, time_losses
from measuring.timing import make_timer
from mmengine.registry import init_default_scope

sys.path.insert(0, str(Path(__file__).parents[1] / 'tests' / 'models' / 'losses'))
from plain_criterion import PlainCriterion

LAYERS, BATCH, QUERIES, CLASSES, REG_MAX = 3, 8, 300, 80, 32
UP, REG_SCALE = 0.5, 4.0


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
    up, reg_scale = torch.tensor([UP]), torch.tensor([REG_SCALE])

    def predictions(references: torch.Tensor):
        count = references.shape[1]
        scores = torch.randn(LAYERS, BATCH, count, CLASSES) - 4
        if not dfine:
            offsets = torch.randn(LAYERS, BATCH, count, 4) * 0.01
            return Predictions(
                scores.requires_grad_(), (references + offsets).clamp(0.005, 0.995).requires_grad_()
            )
        logits = torch.randn(LAYERS, BATCH, count, 4 * (REG_MAX + 1)).requires_grad_()
        bin_distances = weighting_function(REG_MAX, up, reg_scale)
        distances = expected_distances(bin_probabilities(logits), bin_distances)
        layer_boxes = distances_to_boxes(references, distances, reg_scale)
        return Predictions(
            scores.requires_grad_(), layer_boxes, logits, references[None],
            scores[:1].detach().requires_grad_(), references[None].clone().requires_grad_(),
            bin_distances, reg_scale,
        )  # fmt: skip

    noised = boxes.repeat(1, groups * 2, 1)
    noised = (noised + torch.randn_like(noised) * 0.01).clamp(0.005, 0.995)
    return targets, dict(
        predictions=predictions(torch.cat([noised, boxes_near(boxes)], dim=1)),
        encoder=(torch.randn(BATCH, QUERIES, CLASSES) - 4, boxes_near(boxes)),
        num_denoising=noised.shape[1],
        num_groups=groups,
    )


def implementations(targets: list[dict], inputs: dict, dfine: bool) -> dict:
    """The criteria, as functions without arguments that return the loss terms."""
    # On the host, as the samples of a batch are.
    labels, boxes = ([target[key].cpu() for target in targets] for key in ('labels', 'boxes'))
    device = targets[0]['boxes'].device
    criterion = DFINECriterion() if dfine else SetCriterion()
    table = weighting_function(REG_MAX, torch.tensor([UP]), torch.tensor([REG_SCALE]))
    bins = (table.to(device), REG_SCALE) if dfine else None
    plain, reference = (PlainCriterion('mal', bins, all_pairs) for all_pairs in (False, True))
    return dict(
        ours=lambda: criterion(**inputs, targets=Targets.from_lists(labels, boxes).to(device)),
        plain=lambda: plain(**inputs, targets=targets),
        reference=lambda: reference(**inputs, targets=targets),
    )


def summed(terms: Callable[[], dict]) -> Callable[[], torch.Tensor]:
    """A function that returns the sum of loss terms."""
    return lambda: sum(terms().values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--objects', type=int, nargs='+', default=[30, 100], help='of each image')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--out', type=Path, help='JSON file for the figures')
    args = parser.parse_args()
    if args.device == 'cuda':
        check_gpu_found(parser, '--device cuda')
    torch.set_num_threads(args.threads)
    init_default_scope('mmdet')
    rows = []
    for objects in args.objects:
        for dfine in (True, False):
            torch.manual_seed(0)
            with torch.device(args.device):
                targets, inputs = case(objects, dfine)
            functions = implementations(targets, inputs, dfine)
            terms = {name: function() for name, function in functions.items()}
            for key, value in terms['plain'].items():
                torch.testing.assert_close(terms['ours'][key], value, rtol=1e-3, atol=1e-4)
            # With one thread take the process's own time: other processes disturb it less.
            timer = make_timer(args.device, cpu_time=args.threads == 1)
            losses = {name: summed(function) for name, function in functions.items()}
            spans = time_losses(losses, args.repeats, timer, retain_graph=True)
            row = dict(head='D-FINE' if dfine else 'RT-DETRv2', objects=objects)
            row |= figures(spans, args.device)
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
