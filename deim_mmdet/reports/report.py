"""Writes a report: the page, its plots and pictures, and its content as JSON."""

import json
import os
from argparse import ArgumentParser
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import write_text
from .content import Evaluated, analyse
from .counts import TrainingCounts
from .page import render
from .pictures import draw_pictures
from .plots import draw_plots


def check_folder(folder: str | Path) -> Path:
    """Make a report's folder, where it isn't there yet.

    Raises:
        ValueError: It has files, isn't a folder, or can't be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(
            f'a report cannot be written to {folder} ({error.strerror}): name another folder'
        ) from error
    if taken is not None:
        raise UserError(
            f'a report needs a new or empty folder, but {folder} holds {taken.name}: name another '
            'one, or remove it'
        )
    if not os.access(folder, os.W_OK):
        raise UserError(
            f'a report cannot be written to {folder} (no permission): make it writable, or name '
            'another folder'
        )
    return folder


def check_argument(parser: ArgumentParser, folder: str | None) -> None:
    """End a command whose ``--report`` names a folder that a report can't be written to.

    Args:
        parser: The command's parser, which prints the message.
        folder: The folder; None where no report is wanted.
    """
    if folder is not None:
        try:
            check_folder(folder)
        except ValueError as error:
            parser.error(f'--report: {error}')


def write_report(evaluated: Evaluated, training: TrainingCounts, folder: Path) -> dict:
    """Write ``report.html``, ``report.json``, and plots and pictures as PNG files.

    The page holds everything itself. Equal evaluations give equal files.

    Args:
        evaluated: The evaluation.
        training: Objects of the training set.
        folder: Where they are written.

    Returns:
        The content of ``report.json``.
    """
    analysis = analyse(evaluated, training)
    content = analysis.content
    content['plots'] = draw_plots(content, folder)
    content['pictures'] = draw_pictures(analysis, folder)
    write_text(folder / 'report.json', json.dumps(content, indent=1, ensure_ascii=False) + '\n')
    write_text(folder / 'report.html', render(content, folder))
    return content
