"""The runs of the convergence study, which tools/analysis/convergence_study.py trains."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ('baseline', 'mal', 'dense_o2o', 'deim')
REPRODUCED = ('dfine_n', 'deim_dfine_n')


@dataclass(frozen=True)
class Data:
    """A data set of the study.

    Args:
        iters_per_epoch: Iterations an epoch, in the study's batches of 8.
        make: Options of tools/demo/make_dataset.py, or None for a data set that already exists.
        like: The data set of the same kind, in ``DATA``, whose configs it takes.
        scale: Factor of the budgets.
        images: Train on the first so many images alone; None for all of them.
    """

    iters_per_epoch: int
    make: str | None = None
    like: str | None = None
    scale: int = 1
    images: int | None = None


DIGITS = '--size 224 --digits 0 2 3 4'
SPARSE, CROWDED = '--objects 1 3', '--objects 8 16 --scale 0.12 0.3'
DATA = {
    'sparse': Data(250, f'--train 2000 --val 200 {DIGITS} {SPARSE}'),
    'crowded': Data(250, f'--train 2000 --val 200 {DIGITS} {CROWDED}'),
    'bccd': Data(25),
}
# Ten times as much of each, for a GPU; only the variants of ``COMPARED``.
LARGE = {
    'sparse20k': Data(2500, f'--train 20000 --val 1000 {DIGITS} {SPARSE}', 'sparse', 10),
    'crowded20k': Data(2500, f'--train 20000 --val 1000 {DIGITS} {CROWDED}', 'crowded', 10),
}
COMPARED = ('baseline', 'deim')
# Scenes for weights that a CPU makes in some minutes: the first half of ``crowded``.
SCENES = {'crowded1k': Data(125, DATA['crowded'].make, 'crowded', images=1000)}
# Few images, each to be trained on from nothing and from weights.
FEW = {
    'bccd': DATA['bccd'],
    'bccd100': Data(12, like='bccd', images=100),
    'bccd50': Data(6, like='bccd', images=50),
}
# Ways to train from them, by the end of a run's name: the variants, and further options.
WITH_WEIGHTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    '': (VARIANTS, {}),
    '_frozen': (('deim',), {'model.backbone.frozen_stages': 4}),
}
# Approximate iterations of a run, in whole epochs. A long run has twice as many as a short one: a
# short run with DEIM beside a long one without shows whether DEIM halves a training.
BUDGETS = {'short': 1500, 'long': 3000}
# From weights, one hopes to need less.
FEW_BUDGETS = {'brief': 200} | BUDGETS
# A run is evaluated about so often, but not sooner than after so many iterations again.
EVALUATIONS, ITERS_BETWEEN = 20, 60


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        name: Name of its work directory and record.
        config: File under configs/convergence.
        epochs: Number of epochs.
        val_interval: Epochs between evaluations.
        seed: Seed of weights, order and augmentation.
        data: Key of its data set in ``DATA``, ``LARGE``, ``FEW`` or ``SCENES``.
        start: The run whose last weights it starts from; None to start from nothing.
        further: Further options, a key of ``WITH_WEIGHTS``.
    """

    name: str
    config: str
    epochs: int
    val_interval: int
    seed: int
    data: str
    start: 'Run | None' = None
    further: str = ''

    @property
    def facts(self) -> Data:
        """Its data set."""
        return (DATA | LARGE | FEW | SCENES)[self.data]

    @property
    def folder(self) -> str:
        """Name of its folder of images, if they are made; a part of a set shares it."""
        return self.facts.like if self.facts.like and self.facts.images else self.data

    @property
    def iterations(self) -> int:
        """Its length in iterations."""
        return self.epochs * self.facts.iters_per_epoch

    def options(self, root: Path) -> dict[str, Any]:
        """What it sets in its config, where ``root`` has the work directories."""
        options: dict[str, Any] = {
            'train_cfg.max_epochs': self.epochs,
            'train_cfg.val_interval': self.val_interval,
            'randomness.seed': self.seed,
        }
        if self.facts.make:
            options['data_root'] = root / 'data' / self.folder
        if self.facts.images:
            options['train_dataloader.dataset.dataset.indices'] = self.facts.images
        if self.start:
            options['load_from'] = root / self.start.name / f'epoch_{self.start.epochs}.pth'
        return options | WITH_WEIGHTS[self.further][1]

    def command(self, root: Path) -> list[str]:
        """Command that trains or resumes it under ``root``."""
        return [
            sys.executable,
            str(ROOT / 'tools/train.py'),
            str(ROOT / 'configs/convergence' / self.config),
            *('--work-dir', str(root / self.name), '--resume', '--cfg-options'),
            *(f'{key}={value}' for key, value in self.options(root).items()),
        ]


# What others start from, by the number of scenes with digits that it has seen.
PRETRAINING = {
    'digits1k': Run('crowded1k_deim_seed0', 'study_crowded_deim.py', 4, 4, 0, 'crowded1k'),
    'digits20k': Run('crowded20k_short_deim_seed0', 'study_crowded_deim.py', 6, 1, 0, 'crowded20k'),
}


def plan(seeds: Iterable[int]) -> list[Run]:
    """All runs of the study, the most important ones first."""
    runs = []
    for seed in seeds:
        for model in REPRODUCED:
            name = f'bccd_reproduction_{model}'
            runs.append(Run(f'{name}_seed{seed}', f'{name}.py', 30, 1, seed, 'bccd'))
        runs += study(DATA, VARIANTS, seed, BUDGETS)
    return runs


def plan_large(seeds: Iterable[int]) -> list[Run]:
    """The runs on large data sets."""
    return [run for seed in seeds for run in study(LARGE, COMPARED, seed, BUDGETS)]


def plan_starts(seeds: Iterable[int], weights: str) -> list[Run]:
    """The run that makes weights, then those on few images, from these weights and from nothing.

    Args:
        seeds: Seeds. The weights have seed 0 always, as published ones are the same for all.
        weights: Key of ``PRETRAINING``.
    """
    start = PRETRAINING[weights]
    runs = [start]
    for seed in seeds:
        for further, (variants, _) in WITH_WEIGHTS.items():
            suffix = f'_{weights}{further}'
            runs += [
                replace(
                    run,
                    name=run.name.replace('_seed', f'{suffix}_seed'),
                    start=start,
                    further=further,
                )
                for run in study(FEW, variants, seed, FEW_BUDGETS)
            ]
        runs += study(FEW, VARIANTS, seed, FEW_BUDGETS)
    return runs


def study(
    data_sets: Mapping[str, Data],
    variants: Iterable[str],
    seed: int,
    budgets: Mapping[str, int],
) -> list[Run]:
    """The runs on some data sets, shorter ones first."""
    runs = []
    for budget, iterations in budgets.items():
        for data, facts in data_sets.items():
            epochs = round(iterations * facts.scale / facts.iters_per_epoch)
            most = max(1, epochs // min(EVALUATIONS, iterations // ITERS_BETWEEN))
            interval = max(n for n in range(1, most + 1) if epochs % n == 0)
            for variant in variants:
                name = f'{data}_{budget}_{variant}_seed{seed}'
                config = f'study_{facts.like or data}_{variant}.py'
                runs.append(Run(name, config, epochs, interval, seed, data))
    return runs


def ways_to_start() -> dict[str, str]:
    """What follows the variant in a run's name, and the words for it in plots."""
    return {'': ''} | {
        f'_{weights}{further}': f', {weights}{further}'.replace('_', ', ')
        for weights in PRETRAINING
        for further in WITH_WEIGHTS
    }
