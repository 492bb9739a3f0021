"""Plot losses, learning rate and AP of a training over its epochs, the stages shaded.

    python tools/analysis/plot_training.py work_dirs/deim_dfine_l

It reads what mmengine's logger hook writes to the work directory. If a training was resumed, the
later run's figures replace the earlier ones of the same iterations.
"""

import argparse
import math
import sys
from pathlib import Path

from deim_mmdet.engine.history import read_boundaries, read_history
from deim_mmdet.visualization.figures import save_figure, shade_stages

from matplotlib.figure import Figure


def plot_training(work_dir: Path, out: Path) -> None:
    """Plot the training in ``work_dir`` to the image ``out``."""
    history = read_history(work_dir)
    boundaries = read_boundaries(work_dir)
    per_epoch = history.iterations_per_epoch
    steps = sorted(history.train)
    epochs = [step / per_epoch for step in steps]
    end = max(history.train[steps[-1]]['epoch'], *history.val, 1)

    figure = Figure(figsize=(9, 9))
    loss, rate, precision = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1.3, 3])

    def draw(axes, key: str, label: str, **style) -> None:
        points = [
            (x, history.train[step][key])
            for x, step in zip(epochs, steps, strict=True)
            if key in history.train[step]
        ]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)

    # Only the last layer's terms: those of the other layers look alike and would crowd the plot.
    terms = sorted(
        {
            key
            for line in history.train.values()
            for key in line
            if key.startswith('loss_') and key.count('_') == 1
        }
    )
    draw(loss, 'loss', 'all terms', color='black')
    for term in terms:
        draw(loss, term, f'{term.removeprefix("loss_")}, last layer', lw=1)
    loss.set_yscale('log')
    loss.set_ylabel('loss')
    draw(rate, 'lr', 'learning rate', color='tab:blue')
    rate.set_yscale('log')
    rate.set_ylabel('learning rate')
    evaluated = sorted(history.val)
    metrics = {key for line in history.val.values() for key in line}
    for name, label in (('mAP', 'AP'), ('mAP_50', 'AP50'), ('mAP_75', 'AP75')):
        for key in sorted(metric for metric in metrics if metric.endswith(f'bbox_{name}')):
            values = [history.val[epoch].get(key, math.nan) for epoch in evaluated]
            precision.plot(evaluated, values, marker='o', ms=3, label=label)
    precision.set_ylim(0, 1)
    precision.set_ylabel('AP')
    precision.set_xlabel('epoch')
    for axes in (loss, rate, precision):
        axes.grid(alpha=0.3)
        axes.set_xlim(0, end)
        curves = len(axes.get_lines())
        if boundaries is not None:
            shade_stages(axes, boundaries, end)
        if axes is not rate and curves:
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(handles[:curves], labels[:curves], fontsize=8, ncols=2)
    if boundaries is not None:
        patches, labels = rate.get_legend_handles_labels()
        figure.legend(patches[1:], labels[1:], loc='upper center', ncols=4, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    save_figure(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('work_dir', type=Path, help='work directory of a training')
    parser.add_argument('--out', type=Path, help='image to write; default: WORK_DIR/training.png')
    args = parser.parse_args()
    out = args.out or args.work_dir / 'training.png'
    try:
        plot_training(args.work_dir, out)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    print(out)


if __name__ == '__main__':
    main()
