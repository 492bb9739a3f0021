"""Training that is compiled or captured, side by side with eager training; gpu_parts.py runs it."""

import argparse
import copy
import sys
from collections.abc import Callable

import torch
from gpu_trainings import ROOT, say
from torch import nn

ITERATIONS = 50
# Sides of the images in turn: what belongs to one size may not disturb that of another.
SIDES = (64, 96)
# Largest difference of a loss term, as a share of the whole loss. Eager trainings whose first
# weights differ by a unit of float32's rounding stay within 3e-7. A GPU adds in another order each
# time, and compiled kernels in an order of their own, so that each step rounds a few times more.
# Training moves the losses by up to 3e-2: weights, inputs or gradients of another iteration show.
LIMIT = 1e-5


def agreement(args: argparse.Namespace) -> None:
    """Losses of 50 iterations in one form against those of eager training, in float32."""
    from deim_mmdet.engine.devices import set_precision

    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    set_precision(args.device, dict(tf32=False))
    # A CPU would compile for minutes. This traces forward and backward, and runs torch's operators.
    options = dict(backend='aot_eager') if args.device == 'cpu' else {}
    figures = compare(lambda model: put_into(model, args.form, **options), args.device)
    say(form=args.form, iterations=ITERATIONS, **figures)
    if not figures['largest_difference'] <= LIMIT:
        sys.exit(
            f'{args.form} training is not eager training: in iteration {figures["iteration"]} '
            f'{figures["term"]} differs by {figures["largest_difference"]:.1e} of the loss, and '
            f'rounding by less than {LIMIT:.0e}'
        )


def put_into(model: nn.Module, form: str, **options: object) -> None:
    """Let a detector train in a form of gpu_parts.py; ``options`` are torch.compile's."""
    from deim_mmdet.models.detectors.graphed import GraphedNetwork

    if form == 'compiled':
        model.compile_parts(**options)
    if form == 'captured':
        model.static_shapes()
        model.graphed = GraphedNetwork()


def check_captured(model: nn.Module) -> None:
    """End the step where a detector that is to train by CUDA graphs does so without."""
    if model.graphed is not None and (
        model.graphed.failed or not any(model.graphed.graphs.values())
    ):
        sys.exit('no CUDA graph was captured: the output says why')


def compare(change: Callable[[nn.Module], None], device: str) -> dict[str, object]:
    """Train a small detector as it is, and a copy of it that was changed.

    Args:
        change: Puts the copy into its form, in place.
        device: ``'cpu'`` or ``'cuda'``.

    Returns:
        The largest difference of a loss term as a share of the iteration's loss, its name and its
        iteration, and the first and the last loss of the eager training.
    """
    sys.path.insert(0, str(ROOT / 'tests'))
    from tiny_detectors import tiny_detector

    eager = tiny_detector(neck=True).to(device)
    changed = copy.deepcopy(eager)
    change(changed)
    expected, found = losses(eager, device), losses(changed, device)
    check_captured(changed)
    names = [*expected[0]]
    truth, values = (
        torch.tensor([[*terms.values()] for terms in each], dtype=torch.float64)
        for each in (expected, found)
    )
    total = truth.sum(-1, keepdim=True)
    # NaN is the largest of all.
    differences = ((values - truth) / total).abs().nan_to_num(float('inf'))
    iteration, term = divmod(int(differences.argmax()), len(names))
    return dict(
        largest_difference=float(differences.max()),
        term=names[term],
        iteration=iteration,
        first_loss=float(total[0]),
        last_loss=float(total[-1]),
    )


def losses(model: nn.Module, device: str) -> list[dict[str, float]]:
    """Loss terms of each iteration of a training, whose batches and noise are always the same.

    The optimiser is SGD, whose steps are as small as the rounding errors of the gradients. Those of
    Adam are as large for a gradient that is nothing but rounding as for others.
    """
    from tiny_detectors import tiny_batch

    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    rows = []
    for iteration in range(ITERATIONS):
        # Also seeds the noise of the denoising queries.
        torch.manual_seed(iteration)
        counts = torch.randint(7, (2,)).tolist()
        images, samples = tiny_batch(counts, SIDES[iteration % len(SIDES)], iteration)
        terms = model.loss(images.to(device), samples)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        rows.append({name: term.item() for name, term in terms.items()})
        # A capture fails while an earlier step's graph of gradients is alive.
        del terms
    return rows
