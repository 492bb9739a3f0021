"""The report's plots, each for a light and for a dark page."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..visualization.figures import save_figure

#: Background, text and lines of both kinds of page.
SCHEMES = dict(
    light=dict(back='#ffffff', text='#24292f', grid='#d8dee4', line='#0b62c4'),
    dark=dict(back='#161b22', text='#d5dbe1', grid='#3a424c', line='#6cb2ff'),
)
# In shares of the figure.
MARGINS = dict(left=0.05, right=0.98, bottom=0.14, top=0.97, wspace=0.2)
# From this ratio of the largest to the smallest count on, counts are drawn by their logarithms.
LOG_RANGE = 10
# Classes drawn one by one: those with the most objects.
DRAWN = 8


def draw_plots(content: dict, folder: Path) -> dict[str, dict[str, str]]:
    """Draw all plots of a report.

    Args:
        content: Its content.
        folder: The report's folder; PNG files are written to its ``plots``.

    Returns:
        File names by plot, and by scheme (``SCHEMES``).
    """
    plots = dict(curves=_curves, precision=_precision)
    files = {}
    for name, draw in plots.items():
        files[name] = {}
        for scheme in SCHEMES:
            file = f'plots/{name}_{scheme}.png'
            _save(draw, content, scheme, folder / file)
            files[name][scheme] = file
    return files


def _save(draw: Callable, content: dict, scheme: str, path: Path) -> None:
    colours = SCHEMES[scheme]
    settings = {
        **{f'{part}.facecolor': colours['back'] for part in ('figure', 'axes', 'legend')},
        **{f'{part}.color': colours['text'] for part in ('text', 'xtick', 'ytick')},
        **{f'axes.{part}': colours['text'] for part in ('labelcolor', 'titlecolor')},
        **{'axes.edgecolor': colours['grid'], 'grid.color': colours['grid']},
        **{'axes.grid': True, 'axes.axisbelow': True, 'font.size': 10},
        **{'legend.edgecolor': colours['grid'], 'legend.fontsize': 8},
        # Names of classes may have dollar signs, between which matplotlib would read formulas.
        'text.parse_math': False,
    }
    with mpl.rc_context(settings):
        save_figure(draw(content, colours), path)


def _curves(content: dict, colours: dict[str, str]) -> Figure:
    """Precision by recall; F1, and precision and recall, by score."""
    figure = Figure(figsize=(12, 4))
    by_recall, f1, both = figure.subplots(1, 3, gridspec_kw=MARGINS)
    shown = sorted(content['classes'], key=lambda entry: -entry['val']['all'])[:DRAWN]
    for entry in shown if len(content['classes']) > 1 else ():
        line = entry['curve']
        by_recall.plot(line['recall'], line['precision'], lw=1, alpha=0.8, label=entry['name'])
        f1.plot(line['score'], line['f1'], lw=1, alpha=0.8, label=entry['name'])
    whole, thick = content['curve'], dict(color=colours['line'], lw=2.5)
    by_recall.plot(whole['recall'], whole['precision'], **thick, label='all classes')
    f1.plot(whole['score'], whole['f1'], **thick, label='all classes')
    both.plot(whole['score'], whole['precision'], **thick, label='precision')
    both.plot(whole['score'], whole['recall'], **{**thick, 'ls': '--'}, label='recall')
    best = content['threshold']
    if best:
        by_recall.plot(best['recall'], best['precision'], 'o', color=colours['text'])
        for axes in (f1, both):
            axes.axvline(best['score'], color=colours['text'], lw=1, ls=':')
    axis_names = (('recall', 'precision'), ('score', 'F1'), ('score', 'precision, recall'))
    for axes, (x, y) in zip((by_recall, f1, both), axis_names, strict=True):
        axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    f1.legend(loc='best')
    both.legend(loc='best')
    return figure


def _precision(content: dict, colours: dict[str, str]) -> Figure:
    """AP by IoU, and AP of each class by its number of objects."""
    figure = Figure(figsize=(12, 3.6))
    by_iou, by_count = figure.subplots(1, 2, gridspec_kw=MARGINS)
    rows = content['figures_by_iou']
    values = [row['AP'] or 0 for row in rows]
    by_iou.bar([f'{row["iou"]:.2f}' for row in rows], values, color=colours['line'])
    by_iou.set(xlabel='IoU', ylabel='AP')
    part = 'val' if content['training']['note'] else 'train'
    known = [entry for entry in content['classes'] if entry['figures']['AP'] is not None]
    by_count.scatter(
        [max(entry[part]['all'], 0.5) for entry in known],
        [entry['figures']['AP'] for entry in known],
        color=colours['line'],
    )
    for entry in known if len(known) <= 3 * DRAWN else ():
        place = (max(entry[part]['all'], 0.5), entry['figures']['AP'])
        by_count.annotate(
            entry['name'], place, xytext=(4, 4), textcoords='offset points', fontsize=8
        )
    where = 'evaluated' if part == 'val' else 'training'
    by_count.set(xlabel=f'{where} objects of the class', ylabel='AP')
    counts = [max(entry[part]['all'], 0.5) for entry in known]
    if counts and max(counts) >= LOG_RANGE * min(counts):
        by_count.set_xscale('log')
        # Minor ticks of a short range would have formulas as labels.
        by_count.xaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)),
            major_formatter='{x:g}',
            minor_formatter=NullFormatter(),
        )
    for axes in (by_iou, by_count):
        axes.set_ylim(0, 1.15 * max(*axes.dataLim.intervaly, 0.01))
    return figure
