"""The report as one HTML page, which loads nothing from elsewhere."""

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

import cv2

from .plots import SCHEMES
from .style import STYLE
from .words import least_score, number, percent

# More classes than this have no row in the table of confusions: those with the fewest errors.
MOST_CONFUSED = 20
JPEG_QUALITY = 85


def render(content: dict, folder: Path) -> str:
    """The page of a report.

    Args:
        content: All that it says, as in its JSON.
        folder: Where the plots and pictures are that the content names.
    """
    title = f'Report: {content["about"].get("config", "detector")}'
    body = [
        f'<h1>{escape(title)}</h1>',
        _about(content),
        _section('What stands out', _list(content['stands_out'])),
        _section('Threshold', _threshold(content)),
        _section('AP by class', _classes(content)),
        _section('AP by size and IoU', _sizes(content) + _plot(content, 'precision', folder)),
        _section('Curves', CURVES + _plot(content, 'curves', folder)),
        _section('Confusions', _confusion(content)),
        *(_pictures(section, folder) for section in content['pictures'].values()),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f'<body><main>{"".join(body)}</main></body></html>\n'
    )


CURVES = (
    '<p>At an IoU of 0.5. The thick line is all classes together; thin ones are the classes with '
    'the most objects. Dot and dotted line mark the threshold.</p>'
)


def _section(title: str, inner: str) -> str:
    return f'<section><h2>{escape(title)}</h2>{inner}</section>\n'


def _list(items: Iterable[str]) -> str:
    return '<ul>' + ''.join(f'<li>{escape(item)}</li>' for item in items) + '</ul>'


def _table(
    head: Sequence[str], rows: Iterable[Sequence], style: Callable[[int, int], str] | None = None
) -> str:
    """A table whose first column is text; ``style`` gives a cell's by row and column."""
    lines = ['<tr>' + ''.join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + '</tr>']
    for i, (first, *rest) in enumerate(rows):
        cells = ''.join(
            f'<td{style(i, j) if style else ""}>{escape(str(cell))}</td>'
            for j, cell in enumerate(rest)
        )
        lines.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _about(content: dict) -> str:
    cards = [
        *((name.replace('_', ' '), number(value)) for name, value in content['figures'].items()),
        ('images', content['images']),
        ('objects', content['objects']),
        ('input', content['input']),
    ]
    lines = [f'<b>{escape(name)}</b> {escape(text)}' for name, text in content['about'].items()]
    tiles = ''.join(
        f'<div class="card"><span>{escape(str(value))}</span>{escape(name)}</div>'
        for name, value in cards
    )
    return f'<p class="about">{"<br>".join(lines)}</p><div class="cards">{tiles}</div>'


def _threshold(content: dict) -> str:
    best = content['threshold']
    intro = (
        '<p>Detections come with a score. In use, keep those above a threshold. The one with the '
        'best F1 balances wrong detections and misses; raise it where wrong ones cost more, lower '
        'it where misses do. <b>Take it from this page, not from another model</b>: losses such '
        'as MAL teach scores that also tell how well a box fits, so scores are lower than those '
        'of classifiers, and a customary 0.5 may drop most correct detections. Choose it anew '
        'after each training. AP needs no threshold.</p>'
    )
    if not best:
        return intro + '<p>There is no detection, or no object, to choose it by.</p>'
    rows = [('all classes', best), ('all classes, at 0.5', content['at_half'])]
    rows += [
        (entry['name'], entry['threshold'])
        for entry in sorted(
            content['classes'], key=lambda entry: _rates(entry['threshold'])[-1] or 0
        )
    ]
    note = '<p>F1 is at an IoU of 0.5. Each class has its best score, the worst F1 first.</p>'
    return (
        intro
        + _table(
            ('', 'score', 'precision', 'recall', 'F1'),
            [
                (
                    name,
                    least_score(values['score']) if values else '–',
                    *map(number, _rates(values)),
                )
                for name, values in rows
            ],
        )
        + note
    )


def _rates(values: dict | None) -> list[float | None]:
    return [values[name] if values else None for name in ('precision', 'recall', 'f1')]


def _classes(content: dict) -> str:
    training = content['training']
    counted = not training['note']
    intro = (
        '<p>The worst class comes first. Objects are counted as small (area below 32² pixels of '
        'the original image), medium (below 96²) and large. '
    )
    if counted:
        files = ', '.join(Path(file).name for file in training['files'])
        intro += f'Training objects are those of {escape(files)}, {training["images"]} images.</p>'
    else:
        intro += f'Training objects are not counted: {escape(training["note"])}.</p>'
    parts = dict(val='evaluated', train='training') if counted else dict(val='evaluated')
    head = ['class', *(name.replace('_', ' ') for name in content['figures'])]
    for title in parts.values():
        head += [title, 's / m / l']
    rows = []
    for entry in sorted(content['classes'], key=_worst_first):
        row = [entry['name'], *map(number, entry['figures'].values())]
        for part in parts:
            sizes = [str(entry[part][size]) for size in ('small', 'medium', 'large')]
            row += [entry[part]['all'], ' / '.join(sizes)]
        rows.append(row)
    return intro + _table(head, rows)


def _worst_first(entry: dict) -> tuple[bool, float]:
    ap = entry['figures']['AP']
    return ap is None, ap or 0.0


def _sizes(content: dict) -> str:
    total = content['objects']
    rows = [
        (
            row['name'],
            number(row['AP']),
            f'{row["val"]} ({percent(row["val"], total)})',
            '–' if row['train'] is None else row['train'],
        )
        for row in content['sizes']
    ]
    ranges = [
        (
            f'{row["from"]} to {row["to"]} px' if row['to'] else f'from {row["from"]} px',
            f'{row["objects"]} ({percent(row["objects"], total)})',
            percent(row['found'], row['objects']),
        )
        for row in content['input_sizes']
    ]
    return (
        '<div class="beside">'
        + _table(('size in the image', 'AP', 'evaluated', 'training'), rows)
        + _table((f'size at the input ({content["input"]})', 'objects', 'found'), ranges)
        + '</div><p>Size at the input is the root of the box’s area after resizing. “Found” is at '
        'the threshold. What is smaller than about 16 px is hard to find.</p>'
    )


def _confusion(content: dict) -> str:
    names, counts = content['confusion']['names'], content['confusion']['counts']
    score = least_score(content['confusion']['score'])
    wrong = [
        sum(counts[i]) + sum(row[i] for row in counts) - 2 * counts[i][i] for i in range(len(names))
    ]
    shown = sorted(range(len(names) - 1), key=lambda i: -wrong[i])[:MOST_CONFUSED]
    shown = [*sorted(shown), len(names) - 1]
    totals = [max(sum(counts[i]), 1) for i in range(len(names))]

    def shade(row: int, column: int) -> str:
        i, j = shown[row], shown[column]
        kind = 'right' if i == j else 'wrong'
        return f' class="{kind}" style="--share:{100 * counts[i][j] / totals[i]:.0f}%"'

    left_out = (
        f'<p>Only the {MOST_CONFUSED} classes with the most errors; report.json has all.</p>'
        if len(shown) < len(names)
        else ''
    )
    table = _table(
        (
            'annotated ↓ detected →',
            *(names[i] for i in shown[:-1]),
            'nothing',
        ),
        [(names[i], *(counts[i][j] for j in shown)) for i in shown],
        shade,
    )
    kinds = [
        (content['error_names'][kind], count, percent(count, sum(content['errors'].values())))
        for kind, count in content['errors'].items()
    ]
    kinds = _table(('false positives', 'number', 'share'), kinds)
    return (
        f'<p>With detections of a score of at least {score}. A row shows what became of the '
        'objects of a class, “nothing” that they were missed. The row “background” counts '
        'detections where no object was left to find.</p>'
        + left_out
        + f'<div class="beside">{table}{kinds}</div>'
    )


def _pictures(section: dict, folder: Path) -> str:
    if not section['shown'] and not section['unreadable']:
        return _section(section['title'], '<p>None.</p>')
    figures = ''.join(
        f'<figure><img src="{_picture(folder / each["file"])}" alt="{escape(each["caption"])}">'
        f'<figcaption>{escape(each["caption"])}<br><small>{escape(each["image"])}</small>'
        '</figcaption></figure>'
        for each in section['shown']
    )
    note = (
        f'<p>{section["unreadable"]} images could not be read.</p>' if section['unreadable'] else ''
    )
    legend = '<p><i class="annotated"></i> annotated <i class="detected"></i> detected</p>'
    return _section(section['title'], legend + note + f'<div class="pictures">{figures}</div>')


def _plot(content: dict, name: str, folder: Path) -> str:
    files = content['plots'][name]
    light, dark = (_data('png', (folder / files[scheme]).read_bytes()) for scheme in SCHEMES)
    return (
        f'<div class="wide"><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img class="plot" src="{light}" alt="{escape(name)}"></picture></div>'
    )


def _picture(path: Path) -> str:
    """A picture as JPEG, a tenth of the PNG."""
    image = cv2.imread(str(path))
    _, encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return _data('jpeg', encoded.tobytes())


def _data(kind: str, content: bytes) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
