"""Tables as text and as files."""

import csv
from collections.abc import Sequence
from pathlib import Path

from .files import replaced_when_complete


def format_table(rows: Sequence[Sequence]) -> str:
    """A table as aligned text. The first row is the header; the first column is flush left."""
    widths = [max(len(f'{cell}') for cell in column) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(
            f'{cell}'.ljust(width) if column == 0 else f'{cell}'.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def write_table(rows: Sequence[Sequence], path: Path) -> None:
    """Write a table, whose first row is the header, to a CSV file."""
    with (
        replaced_when_complete(path) as temporary,
        open(temporary, 'w', newline='', encoding='utf-8') as file,
    ):
        csv.writer(file, lineterminator='\n').writerows(rows)
