"""Reads what a training logged, and keeps a small record of its AP."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.config import Config

from ..utils.components import find_component
from ..utils.errors import UserError
from ..utils.tables import write_table
from .hooks import DenseO2OScheduleHook
from .recipe import PublishedRecipe, derive_stages


@dataclass
class History:
    """The figures that a training logged.

    Args:
        train: Logged figures, with ``epoch`` among them, by global iteration (from 1).
        val: Figures of the evaluation by epoch (from 1).
    """

    train: dict[int, dict[str, float]]
    val: dict[int, dict[str, float]]

    @property
    def iterations_per_epoch(self) -> int:
        """The smallest number of iterations that puts every logged one into its epoch."""
        return max(math.ceil(step / line['epoch']) for step, line in self.train.items())


@dataclass(frozen=True)
class Evaluation:
    """A training's state after ``epoch`` epochs, ``iteration`` iterations.

    Args:
        epoch: Counted from 1.
        iteration: Counted from 1.
        loss: Mean of the losses logged in the epoch; NaN without any.
        ap: AP over IoUs from 0.5 to 0.95, in [0, 1].
        ap50: AP at IoU 0.5; NaN where it wasn't computed.
    """

    epoch: int
    iteration: int
    loss: float
    ap: float
    ap50: float


def read_history(work_dir: Path) -> History:
    """Read the scalars of all runs in a work directory, oldest first.

    Where a training was resumed, the later run's figures replace the earlier ones of the same
    iterations.

    Raises:
        FileNotFoundError: If the directory holds none.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    history = History({}, {})
    for file in files:
        for line in file.read_text().splitlines():
            try:
                figures = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a killed run
            if 'loss' in figures:
                history.train[figures['step']] = figures
            elif 'step' in figures:
                history.val[figures['step']] = figures
    if not history.train:
        raise FileNotFoundError(
            f'no training figures under {work_dir}: expected <time>/vis_data/scalars.json there'
        )
    return history


def read_boundaries(work_dir: Path) -> tuple[int, int, int] | None:
    """First epochs (t1, t2, t3) of the last three stages, from the configuration of a run.

    Args:
        work_dir: The run's work directory.

    Returns:
        The epochs; None where the run has no schedule of Dense O2O.
    """
    configs = sorted(Path(work_dir).glob('*/vis_data/config.py'))
    if not configs:
        return None
    config = Config.fromfile(configs[-1], import_custom_modules=False)
    hook = find_component(HOOKS, config.get('custom_hooks'), DenseO2OScheduleHook)
    if hook is None:
        return None
    if hook.get('stages'):
        return tuple(hook['stages'])
    published = PublishedRecipe(batch_size=config.auto_scale_lr.base_batch_size, **config.recipe)
    return derive_stages(published, config.train_cfg.max_epochs)


def evaluations_of(history: History) -> list[Evaluation]:
    """The evaluations of a history that measured AP of boxes, in order."""
    losses: dict[int, list[float]] = {}
    for line in history.train.values():
        losses.setdefault(line['epoch'], []).append(line['loss'])
    evaluations = []
    for epoch, line in sorted(history.val.items()):
        ap, ap50 = (
            next((v for k, v in line.items() if k.endswith(f'bbox_{name}')), math.nan)
            for name in ('mAP', 'mAP_50')
        )
        if math.isnan(ap):
            continue
        logged = losses.get(epoch, [math.nan])
        evaluations.append(
            Evaluation(
                epoch, epoch * history.iterations_per_epoch, sum(logged) / len(logged), ap, ap50
            )
        )
    return evaluations


def read_evaluations(path: Path) -> list[Evaluation]:
    """Evaluations from a work directory, or from a record that :func:`write_evaluations` wrote.

    Raises:
        FileNotFoundError: There is no such directory or file, or nothing was logged in it.
        ValueError: It holds no evaluation, or isn't a record.
    """
    path = Path(path)
    if path.is_dir():
        evaluations = evaluations_of(read_history(path))
        if not evaluations:
            raise UserError(f'{path}: no evaluation with bbox_mAP was logged there yet')
        return evaluations
    if not path.is_file():
        raise FileNotFoundError(f'{path}: there is no such work directory or record (.csv)')
    kinds = Evaluation.__annotations__
    try:
        with open(path, newline='', encoding='utf-8') as file:
            evaluations = [
                Evaluation(**{name: kinds[name](line[name]) for name in kinds})
                for line in csv.DictReader(file)
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path} is no record with columns {", ".join(kinds)}: {error}') from None
    if not evaluations:
        raise UserError(f'{path}: the record holds no evaluation')
    return evaluations


def write_evaluations(evaluations: list[Evaluation], path: Path) -> None:
    """Write a record: a CSV file with a line for each evaluation."""
    names = list(Evaluation.__annotations__)
    rows = [[_rounded(getattr(line, name)) for name in names] for line in evaluations]
    write_table([names, *rows], path)


def _rounded(value: float) -> float:
    return round(value, 5) if isinstance(value, float) else value
