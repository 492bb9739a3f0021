"""Half precision against double precision, with bounds for its errors; gpu_parts.py runs it."""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from gpu_trainings import ROOT, say
from torch import nn

SEEDS, SIDE = 5, 192
# Half precision rounds weights and images at least. The error that this alone gives, with all else
# in double precision, says how exact gradients can be. Rounding of features adds to it: on a CPU,
# with products as on a GPU, errors of both halves were 1.1 to 1.4 times as large.
FACTOR = 2.0
# Of the reference's errors, where it is there.
OF_REFERENCE = 1.1
# Error of a loss term as a share of all losses: five times that on a CPU.
LOSSES = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 3e-3}
# Error of the gradients in float32; on a CPU it is 0.002 in the backbone, and less elsewhere.
SINGLE = 1e-2
PARTS = ('backbone', 'neck', 'head')


@contextmanager
def rounded_weights(model: nn.Module, half: torch.dtype) -> Iterator[None]:
    """Context in which the weights that autocast rounds, of products, are rounded to ``half``."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.copy_(weight.to(half))
        try:
            with torch.enable_grad():
                yield
        finally:
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


def precision(args: argparse.Namespace) -> None:
    """Errors of D-FINE-N's losses and gradients; float64 is the truth.

    They are root mean squares over seeds, which give weights, images and objects. Queries and
    matches are those of float64.
    """
    from deim_mmdet.engine.config import load_config
    from deim_mmdet.engine.devices import set_precision

    from mmengine.registry import init_default_scope

    sys.path.insert(0, str(ROOT / 'benchmarks'))
    from measuring.installed import reason_against
    from measuring.reference_models import load_our_weights
    from measuring.rounding import (
        Ours,
        Reference,
        compute,
        gradient_errors,
        make_batch,
        randomise,
    )

    init_default_scope('mmdet')
    set_precision(args.device, dict(tf32=False))
    cfg = load_config('configs/dfine_n.py').model
    cfg.backbone.init_cfg, cfg.bbox_head.denoising = None, None
    reason = reason_against('reference')
    if reason:
        say(left_out=dict(reference=reason))
    torch.manual_seed(0)
    sides = dict(ours=Ours(cfg), **({} if reason else dict(reference=Reference(cfg, SIDE))))
    for side in sides.values():
        side.model.to(args.device).train()
    halves = (torch.bfloat16, torch.float16)
    squares = defaultdict(list)

    def note(name, dtype, found, truth):
        total = sum(truth.terms.values())
        squares[name, dtype, 'losses'] += [
            (found.terms[term] - value) ** 2 / total**2 for term, value in truth.terms.items()
        ]
        for part, error in gradient_errors(found, truth).items():
            squares[name, dtype, part].append(error**2)

    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(2, 3, SIDE, SIDE, generator=generator).to(args.device)
        exact = make_batch(images.double(), seed)
        single = exact.to(torch.float32)
        ours = sides['ours']
        randomise(ours, single, seed)
        if not reason:
            load_our_weights(sides['reference'].model, ours.model.state_dict(), cfg)
        for name, side in sides.items():
            truth = compute(side, exact)
            note(name, torch.float32, compute(side, single, None, truth.choices), truth)
            for half in halves:
                note(name, half, compute(side, single, half, truth.choices), truth)
                if side is ours:
                    batch = exact._replace(images=images.to(half).double())
                    with rounded_weights(ours.model.double(), half):
                        note('rounded', half, compute(ours, batch, None, truth.choices), truth)
            side.model.float()
    errors = {key: math.sqrt(math.fsum(values) / len(values)) for key, values in squares.items()}
    for dtype in (torch.float32, *halves):
        names = [name for name in (*sides, 'rounded') if (name, dtype, 'losses') in errors]
        figures = {
            name: {what: errors[name, dtype, what] for what in ('losses', *PARTS)} for name in names
        }
        say(type=str(dtype), **figures)
    if failures := beyond_bounds(errors):
        sys.exit(f'too far from float64: {"; ".join(failures)}')


def beyond_bounds(errors: dict[tuple[str, torch.dtype, str], float]) -> list[str]:
    """What is wrong with the errors.

    Args:
        errors: By implementation (``'ours'``, ``'reference'``, which may be missing, or
            ``'rounded'``), type, and ``'losses'`` or part of the model.
    """
    failures = []
    for dtype, limit in LOSSES.items():
        bounds = [('losses', limit, 'the limit')]
        for part in PARTS:
            if dtype == torch.float32:
                bounds.append((part, SINGLE, 'the limit'))
                continue
            rounding = FACTOR * errors['rounded', dtype, part]
            bounds.append((part, rounding, f'{FACTOR} times that of rounded weights'))
            theirs = OF_REFERENCE * errors.get(('reference', dtype, part), math.inf)
            bounds.append((part, theirs, f"{OF_REFERENCE} times the reference's"))
        for what, bound, meaning in bounds:
            error = errors['ours', dtype, what]
            if not error <= bound:
                failures.append(f'{what} in {dtype}, {error:.2g} instead of {bound:.2g}, {meaning}')
    return failures
