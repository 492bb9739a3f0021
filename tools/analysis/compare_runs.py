"""Draw AP of several trainings by epochs and iterations, and say when each reaches the baseline's.

    python tools/analysis/compare_runs.py work_dirs/dfine_n work_dirs/deim_dfine_n
    python tools/analysis/compare_runs.py D-FINE=runs/dfine_0,runs/dfine_1 DEIM=runs/deim_0 \
        --baseline D-FINE --out comparison.png

An argument is a work directory, with its resumed runs, or a record (.csv) that
tools/analysis/convergence_study.py wrote. NAME=A,B,... is a group of trainings that differ in their
seed alone. The plot shows a group's mean, over the epochs at which all its trainings were
evaluated, and their range. Writes the plot and, beside it, the table as .csv.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deim_mmdet.engine.history import Evaluation, read_evaluations
from deim_mmdet.utils.tables import format_table
from deim_mmdet.visualization.figures import save_with_table

import numpy as np
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """AP of trainings that differ in their seed alone.

    Args:
        name: Name of the trainings.
        epochs: (N,) int, the N epochs after which all were evaluated, in order.
        iterations: (N,) int, the iterations of these epochs.
        ap: (trainings, N) in [0, 1].
    """

    name: str
    epochs: np.ndarray
    iterations: np.ndarray
    ap: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(N,) mean over the trainings."""
        return self.ap.mean(axis=0)

    def reaches(self, ap: float) -> int | None:
        """Index of the first evaluation whose mean is at least ``ap``; None where there is none."""
        reached = np.flatnonzero(self.mean >= ap)
        return int(reached[0]) if len(reached) else None


def join(name: str, trainings: Sequence[Sequence[Evaluation]]) -> Curve:
    """The curve of trainings, over the epochs at which all of them were evaluated.

    Raises:
        ValueError: There is no such epoch, or the trainings have different iterations an epoch.
    """
    by_epoch = [{line.epoch: line for line in training} for training in trainings]
    epochs = sorted(set.intersection(*(set(lines) for lines in by_epoch)))
    if not epochs:
        raise ValueError(f'{name}: its trainings have no evaluated epoch in common')
    iterations = np.array([[lines[e].iteration for e in epochs] for lines in by_epoch])
    if (iterations != iterations[0]).any():
        raise ValueError(
            f'{name}: its trainings differ in the iterations of an epoch, so more than in their '
            'seed: compare them as groups of their own'
        )
    ap = np.array([[lines[e].ap for e in epochs] for lines in by_epoch])
    return Curve(name, np.array(epochs), iterations[0], ap)


def parse_group(text: str) -> tuple[str, list[Path]]:
    """Name and paths of an argument: ``NAME=A,B`` or a single path, named after its last part.

    Raises:
        ValueError: A path or the name is empty.
    """
    name, equals, paths = text.partition('=')
    if not equals:
        name, paths = Path(text).stem or text, text
    parts = paths.split(',')
    if not name or not all(parts):
        raise ValueError(f'{text!r}: write WORK_DIR, or NAME=WORK_DIR,WORK_DIR')
    return name, [Path(part) for part in parts]


def read_curves(groups: Sequence[str]) -> list[Curve]:
    """The curves of all arguments.

    Raises:
        FileNotFoundError: There is no such work directory or record.
        ValueError: An argument is malformed, two have the same name, or one can't be compared.
    """
    curves = []
    for text in groups:
        name, paths = parse_group(text)
        if name in [curve.name for curve in curves]:
            raise ValueError(f'{name}: two groups have that name; give others by NAME=WORK_DIR')
        curves.append(join(name, [read_evaluations(path) for path in paths]))
    return curves


def compare(curves: Sequence[Curve], baseline: Curve) -> list[list]:
    """The table, its header first: final and best AP, and when the baseline's final AP is reached.

    AP is the mean of a group, with the lowest and highest of its trainings. ``-``: not reached.
    """
    target = baseline.mean[-1]
    goal = f'AP {target:.3f}'
    header = ['', 'runs', 'epochs', 'iterations', 'final AP', 'range', 'best AP']
    rows = [[*header, f'epochs to {goal}', f'iterations to {goal}']]
    for curve in curves:
        final, reached = curve.ap[:, -1], curve.reaches(target)
        rows.append(
            [
                curve.name,
                len(curve.ap),
                curve.epochs[-1],
                curve.iterations[-1],
                f'{final.mean():.3f}',
                f'{final.min():.3f}–{final.max():.3f}',
                f'{curve.mean.max():.3f}',
                *(
                    ('-', '-')
                    if reached is None
                    else (curve.epochs[reached], curve.iterations[reached])
                ),
            ]
        )
    return rows


def draw(curves: Sequence[Curve], baseline: Curve, title: str | None) -> Figure:
    """AP against epochs and against iterations; the dotted line is the baseline's final AP."""
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    for axes, unit in zip(
        figure.subplots(1, 2, sharey=True), ('epochs', 'iterations'), strict=True
    ):
        for curve in curves:
            x = getattr(curve, unit)
            runs = f', {len(curve.ap)} runs' if len(curve.ap) > 1 else ''
            (line,) = axes.plot(x, curve.mean, marker='o', ms=2.5, label=f'{curve.name}{runs}')
            if runs:
                axes.fill_between(
                    x, curve.ap.min(axis=0), curve.ap.max(axis=0), color=line.get_color(), alpha=0.2
                )
        axes.axhline(baseline.mean[-1], color='grey', ls=':', lw=1)
        axes.set_xlabel(unit)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    first, second = figure.axes
    first.set_ylabel('AP')
    second.legend(fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', nargs='+', metavar='WORK_DIR', help='or NAME=WORK_DIR,WORK_DIR,...')
    parser.add_argument('--baseline', help='name of a group; default: the first one')
    parser.add_argument('--title', help='title of the plot')
    parser.add_argument('--out', type=Path, default=Path('compare_runs.png'), help='image to write')
    args = parser.parse_args()
    try:
        curves = read_curves(args.runs)
        by_name = {curve.name: curve for curve in curves}
        name = args.baseline or curves[0].name
        if name not in by_name:
            raise ValueError(f'--baseline {name}: the groups are {", ".join(by_name)}')
        table = compare(curves, by_name[name])
        written = save_with_table(draw(curves, by_name[name], args.title), table, args.out)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    print(format_table(table))
    print(args.out, written)


if __name__ == '__main__':
    main()
