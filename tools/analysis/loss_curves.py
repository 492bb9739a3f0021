"""Draw VFL and MAL against the predicted probability, for matches of given IoU.

    python tools/analysis/loss_curves.py --out loss_curves.png

VFL (varifocal loss) weighs a match by its IoU: a match of low IoU hardly counts, however confident
it is. MAL doesn't do so (DEIM, section 3.2). Both are the package's own losses, on a single matched
class.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deim_mmdet.models.losses import MatchabilityAwareLoss, VarifocalQualityLoss
from deim_mmdet.visualization.figures import save_figure

import torch
from matplotlib.figure import Figure


def loss_curve(loss: torch.nn.Module, probabilities: torch.Tensor, iou: float) -> torch.Tensor:
    """Loss of matched pairs.

    Args:
        loss: A loss that takes (labels, IoU), built with ``reduction='none'``.
        probabilities: (N,) predicted probabilities of the matched class, in (0, 1).
        iou: IoU of the pairs in [0, 1].

    Returns:
        (N,) losses.
    """
    labels = torch.zeros(len(probabilities), dtype=torch.long)
    quality = torch.full_like(probabilities, iou)
    return loss(torch.logit(probabilities)[:, None], (labels, quality))


def draw_curves(ious: Sequence[float], gammas: Sequence[float]) -> Figure:
    """VFL and, for each γ, MAL against the probability; one plot for each IoU.

    Raises:
        ValueError: An IoU lies outside of [0, 1], or a γ isn't positive.
    """
    if not all(0 <= iou <= 1 for iou in ious):
        raise ValueError(f'--iou: give values in [0, 1], got {list(ious)}')
    if not all(gamma > 0 for gamma in gammas):
        raise ValueError(f'--gamma: give positive values, got {list(gammas)}')
    losses = {'VFL': VarifocalQualityLoss(reduction='none')}
    for gamma in gammas:
        losses[f'MAL, γ = {gamma:g}'] = MatchabilityAwareLoss(gamma=gamma, reduction='none')
    probabilities = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    figure = Figure(figsize=(4.5 * len(ious), 4), layout='constrained')
    for axes, iou in zip(figure.subplots(1, len(ious), squeeze=False)[0], ious, strict=True):
        for name, loss in losses.items():
            curve = loss_curve(loss, probabilities, iou)
            axes.plot(probabilities, curve, '--' if name == 'VFL' else '-', label=name)
        axes.set_title(f'match of IoU {iou:g}')
        axes.set_xlabel('predicted probability')
        axes.set_ylabel('loss')
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--iou', type=float, nargs='+', default=[0.05, 0.95], help='IoUs to draw')
    parser.add_argument('--gamma', type=float, nargs='+', default=[1.5], help='exponents γ of MAL')
    parser.add_argument('--out', type=Path, default=Path('loss_curves.png'), help='image to write')
    args = parser.parse_args()
    try:
        save_figure(draw_curves(args.iou, args.gamma), args.out)
    except ValueError as error:
        sys.exit(str(error))
    print(args.out)


if __name__ == '__main__':
    main()
