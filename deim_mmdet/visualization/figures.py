"""Colours of the stages in plots, and figures as files."""

from collections.abc import Sequence
from pathlib import Path

from deim_mmdet.utils import Stage
from deim_mmdet.utils.files import replaced_when_complete
from deim_mmdet.utils.tables import write_table

from matplotlib.axes import Axes
from matplotlib.figure import Figure

STAGE_COLOURS = {
    Stage.WARM_UP: '#f2e6c9',
    Stage.DENSE: '#d5e8d4',
    Stage.FLAT: '#dae8fc',
    Stage.NO_AUG: '#eeeeee',
}


def shade_stages(axes: Axes, boundaries: tuple[int, int, int], end: float) -> None:
    """Shade the stages of a training of ``end`` epochs; the x axis is in epochs."""
    edges = (0, *boundaries, end)
    for stage, start, stop in zip(Stage, edges[:-1], edges[1:], strict=True):
        if start < min(stop, end):
            axes.axvspan(
                start, min(stop, end), color=STAGE_COLOURS[stage], zorder=0, label=stage.label
            )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to an image file of the suffix's format; folders are made.

    Raises:
        ValueError: The suffix names no format that matplotlib writes.
    """
    formats = figure.canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in formats:
        raise ValueError(f'{path}: give it a suffix of an image format, e.g. .png')
    with replaced_when_complete(path) as temporary:
        figure.savefig(temporary, dpi=110)


def save_with_table(figure: Figure, table: Sequence[Sequence], path: Path) -> Path:
    """Write a figure and, beside it, its table as .csv; return the path of the table.

    Raises:
        ValueError: The suffix names no format that matplotlib writes.
    """
    save_figure(figure, path)
    table_path = Path(path).with_suffix('.csv')
    write_table(table, table_path)
    return table_path
