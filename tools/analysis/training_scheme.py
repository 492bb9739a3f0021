"""Draw learning rates, augmentation and EMA decay of a config over its training.

    python tools/analysis/training_scheme.py configs/deim_dfine_l.py --images 118287
    python tools/analysis/training_scheme.py CONFIG --processes 8 --out training_scheme.png

Nothing is trained: the config's runner derives the recipe, and its schedulers step an optimiser
without gradients through every iteration. The config may be any detector's, also MMDetection's own.
The training set gives the length of an epoch; without the data, --images gives the number of
images.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from deim_mmdet.datasets import DenseO2O
from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.hooks import DenseO2OScheduleHook
from deim_mmdet.models.data_preprocessors import (
    DenseO2OCopyBlend,
    DenseO2OMixUp,
    DenseO2OMultiScale,
)
from deim_mmdet.utils import Stage
from deim_mmdet.utils.components import component_class, component_name, is_component
from deim_mmdet.visualization.figures import save_figure, shade_stages

import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.engine.hooks import PipelineSwitchHook, YOLOXModeSwitchHook
from mmdet.registry import MODELS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine.config import Config, DictAction
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import Dataset

# Epochs [start, stop) in which an augmentation acts.
Span = tuple[float, float]

# The stages in which DenseO2O's transforms and these batch augments act. All others always act.
STAGES_OF_ARGUMENT = dict(mosaic=(Stage.DENSE,), single=(Stage.DENSE, Stage.FLAT))
STAGES_OF_AUGMENT = {
    DenseO2OMixUp: (Stage.DENSE,),
    DenseO2OCopyBlend: (Stage.DENSE, Stage.FLAT),
    DenseO2OMultiScale: (Stage.WARM_UP, Stage.DENSE, Stage.FLAT),
}
# So few points are enough: the EMA's decay changes slowly.
EMA_POINTS = 400


class CountedImages(Dataset):
    """Stands for a training set of ``number`` images where only their number matters."""

    metainfo: dict = {}

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int):
        raise NotImplementedError('only the number of images is known')


@dataclass
class ParameterGroup:
    """Parameters that always have the same learning rate.

    Args:
        label: Modules of the parameters, and how many there are.
        rates: (iterations,) learning rate at each iteration.
    """

    label: str
    rates: np.ndarray


@dataclass
class TrainingScheme:
    """The quantities that change over a training.

    Args:
        iters_per_epoch: Iterations an epoch.
        groups: Learning rates, highest first.
        boundaries: First epochs (t1, t2, t3) of the dense, flat and no-augmentation stage; None
            without Dense O2O.
        augmentations: By name of a transform or batch augment, the epochs in which it acts.
        ema: (points, 2) epoch and decay of the weights' average; None without an EMA.
    """

    iters_per_epoch: int
    groups: list[ParameterGroup]
    boundaries: tuple[int, int, int] | None
    augmentations: dict[str, list[Span]]
    ema: np.ndarray | None

    @property
    def epochs(self) -> float:
        """Length of the training in epochs."""
        return len(self.groups[0].rates) / self.iters_per_epoch


def build_runner(config: Config, work_dir: str) -> Runner:
    """The config's runner with loop, optimiser and schedulers as at the start of a training."""
    config = copy.deepcopy(config)
    config.work_dir = work_dir
    # mmengine keeps loggers and visualisers by this name, also when the folder is gone.
    config.experiment_name = Path(work_dir).name
    config.log_level = 'ERROR'
    config.visualizer = None
    for split in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            config[f'{split}_{part}'] = None
    # Mixed precision changes no learning rate, and needs a GPU outside of DEIMRunner.
    if is_component(OPTIM_WRAPPERS, config.optim_wrapper, AmpOptimWrapper):
        config.optim_wrapper = {
            key: value
            for key, value in config.optim_wrapper.items()
            if key not in ('loss_scale', 'dtype', 'use_fsdp')
        } | dict(type='OptimWrapper')
    # In training the runner does the same, in this order.
    runner = RUNNERS.build(config)
    _ = runner.train_loop  # reading it builds it
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    return runner


def describe_parameters(names: Sequence[str], count: int) -> str:
    """Text such as ``backbone, neck (12.3 M)``, from parameter names and number of elements."""
    parts = sorted({name.split('.')[0] for name in names})
    shown = ', '.join(parts[:3]) + (', …' if len(parts) > 3 else '')
    return f'{shown} ({count / 1e6:.3g} M)'


def learning_rates(runner: Runner) -> list[ParameterGroup]:
    """Learning rates at every iteration, once for each initial rate.

    The runner's schedulers step an optimiser with one parameter for each rate. The real one may
    have hundreds of parameter groups.
    """
    names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
    shared: dict[float, list[nn.Parameter]] = {}
    for group in runner.optim_wrapper.optimizer.param_groups:
        shared.setdefault(group['lr'], []).extend(group['params'])
    shared = dict(sorted(shared.items(), reverse=True))
    small = torch.optim.SGD([dict(params=[nn.Parameter(torch.zeros(1))], lr=lr) for lr in shared])
    runner.optim_wrapper = OptimWrapper(small)
    schedulers = runner.build_param_scheduler(runner.param_schedulers or [])
    loop = runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    rates = np.empty((loop.max_iters, len(shared)))
    # Steps as ParamSchedulerHook does. Schedulers warn if the optimiser hasn't stepped yet.
    small.step()
    for iteration in range(loop.max_iters):
        rates[iteration] = [group['lr'] for group in small.param_groups]
        ends_epoch = by_epoch and (iteration + 1) % len(runner.train_dataloader) == 0
        for scheduler in schedulers:
            if not scheduler.by_epoch or ends_epoch:
                scheduler.step()
    return [
        ParameterGroup(
            describe_parameters(
                [names[id(parameter)] for parameter in parameters],
                sum(parameter.numel() for parameter in parameters),
            ),
            rates[:, column],
        )
        for column, parameters in enumerate(shared.values())
    ]


def ema_decay(runner: Runner) -> np.ndarray | None:
    """Epoch and decay of the first EMA hook's average, (points, 2); None without such a hook.

    The hook's own averaging class gives the decay: an average of ones, updated with zeros, becomes
    the decay.
    """
    hook = next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)
    if hook is None:
        return None
    per_epoch, end = len(runner.train_dataloader), runner.train_loop.max_iters
    source = nn.Linear(1, 1, bias=False)
    average = MODELS.build(hook.ema_cfg, default_args=dict(model=source))
    nn.init.zeros_(source.weight)
    begin = hook.begin_epoch * per_epoch + hook.begin_iter
    points = []
    for update in np.unique(np.linspace(0, end - 1 - begin, EMA_POINTS).astype(int)):
        # The first update of some averages copies the model.
        average.steps.fill_(int(update) // average.interval * average.interval)
        nn.init.ones_(average.module.weight)
        average.update_parameters(source)
        points.append(((begin + update) / per_epoch, average.module.weight.item()))
    return np.array(points)


def transform_names(transforms: Sequence[dict]) -> Iterator[str]:
    """Names of the transforms that change an image, without those that load or pack it."""
    for transform in transforms:
        name = component_name(transform)
        if not name.startswith(('Load', 'Pack')) and not is_component(
            TRANSFORMS, transform, DenseO2O
        ):
            yield name


def pipelines(dataset: dict) -> Iterator[list[dict]]:
    """Pipelines of a data set's config and its wrappers, in the order in which they act."""
    for child in dataset.get('datasets') or [dataset.get('dataset')]:
        if child:
            yield from pipelines(child)
    if dataset.get('pipeline'):
        yield dataset['pipeline']


def union(spans: Sequence[Span]) -> list[Span]:
    """Spans in order; overlapping or touching ones are joined, empty ones left out."""
    joined: list[Span] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            first, last = joined.pop()
            start, stop = first, max(last, stop)
        joined.append((start, stop))
    return joined


def augmentation_spans(
    config: Config,
    hooks: Sequence,
    boundaries: tuple[int, int, int] | None,
    epochs: float,
) -> dict[str, list[Span]]:
    """When each transform and batch augment acts; see :class:`TrainingScheme`.

    It knows Dense O2O's schedule and mmdet's PipelineSwitchHook and YOLOXModeSwitchHook.
    """
    # Without the schedule's hook, DenseO2O stays in the dense stage.
    boundaries = boundaries or (0, epochs, epochs)
    switch, second = epochs, None
    skipped: Sequence[str] = ()
    for hook in hooks:
        if isinstance(hook, PipelineSwitchHook):
            switch, second = min(hook.switch_epoch, epochs), hook.switch_pipeline
        elif isinstance(hook, YOLOXModeSwitchHook):
            # The hook counts epochs from one.
            switch = max(0, epochs - hook.num_last_epochs - 1)
            skipped = hook.skip_type_keys
    edges = (0, *boundaries, epochs)
    found: dict[str, list[Span]] = {}

    def add(name: str, *spans: Span) -> None:
        found.setdefault(name, []).extend((start, min(stop, epochs)) for start, stop in spans)

    def add_in(stages: Sequence[Stage], name: str) -> None:
        add(name, *((edges[stage], edges[stage + 1]) for stage in stages))

    for transform in chain.from_iterable(pipelines(config.train_dataloader.dataset)):
        if is_component(TRANSFORMS, transform, DenseO2O):
            for argument, stages in STAGES_OF_ARGUMENT.items():
                for name in transform_names(transform.get(argument) or []):
                    add_in(stages, name)
        # The hook compares with the type as the config writes it.
        ends = second is not None or transform['type'] in skipped
        for name in transform_names([transform]):
            add(name, (0, switch if ends else epochs))
    for name in transform_names(second or []):
        add(name, (switch, epochs))
    for augment in (config.model.get('data_preprocessor') or {}).get('batch_augments') or []:
        kind = component_class(MODELS, augment)
        stages = STAGES_OF_AUGMENT.get(kind, tuple(Stage))
        if kind is DenseO2OCopyBlend and 'stages' in augment:
            stages = [stage for stage in Stage if stage.label in augment['stages']]
        add_in(stages, component_name(augment))
    joined = {name: union(spans) for name, spans in found.items()}
    return {name: spans for name, spans in joined.items() if spans}


def training_scheme(
    config: Config, images: int | None = None, processes: int = 1
) -> TrainingScheme:
    """The quantities that change over the training of a config.

    Args:
        config: A training config.
        images: Number of images of an epoch; None reads the training set.
        processes: Number of processes that share the work, each with the config's batch size.

    Raises:
        FileNotFoundError: The training set is missing, and ``images`` isn't given.
        ValueError: The config describes no training, or its recipe doesn't fit.
    """
    if not all(config.get(key) for key in ('model', 'train_dataloader', 'optim_wrapper')):
        raise ValueError(
            f'{config.filename} needs model, train_dataloader and optim_wrapper: name a training '
            'config'
        )
    for name, value in dict(images=images, processes=processes).items():
        if value is not None and value < 1:
            raise ValueError(f'--{name}: give a positive number, got {value}')
    own = copy.deepcopy(config)
    if images is not None:
        own.train_dataloader.dataset = dict(type=CountedImages, number=images)
    # One process with the joint batch has the same iterations and recipe.
    own.train_dataloader.batch_size *= processes
    own.train_dataloader.update(num_workers=0, persistent_workers=False)
    with tempfile.TemporaryDirectory() as work_dir:
        try:
            runner = build_runner(own, work_dir)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'{str(error).rstrip(".")}. Without the data, give --images, the number of images'
            ) from None
        groups = learning_rates(runner)
        per_epoch = len(runner.train_dataloader)
        epochs = len(groups[0].rates) / per_epoch
        schedules = [hook for hook in runner.hooks if isinstance(hook, DenseO2OScheduleHook)]
        boundaries = schedules[0].stages if schedules else None
        return TrainingScheme(
            iters_per_epoch=per_epoch,
            groups=groups,
            boundaries=boundaries,
            augmentations=augmentation_spans(config, runner.hooks, boundaries, epochs),
            ema=ema_decay(runner),
        )


def draw_scheme(scheme: TrainingScheme, title: str) -> Figure:
    """Plots of learning rates, augmentation and EMA decay, with shaded stages."""
    rows = len(scheme.augmentations)
    heights = [3, 0.5 + 0.25 * rows] + ([1.6] if scheme.ema is not None else [])
    figure = Figure(figsize=(10, sum(heights) + 1), layout='constrained')
    figure.suptitle(f'{title}: {scheme.epochs:g} epochs of {scheme.iters_per_epoch} iterations')
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    rate, augmentation = panels[:2]
    epochs = np.arange(len(scheme.groups[0].rates)) / scheme.iters_per_epoch
    for group in scheme.groups:
        rate.plot(epochs, group.rates, label=group.label)
    rate.set_yscale('log', nonpositive='mask')
    # Warm-ups begin at 0 or close to it; the other rates span a few powers of ten.
    lowest = min(min(group.rates.max() / 100, group.rates[-1] / 2) for group in scheme.groups)
    rate.set_ylim(bottom=lowest if lowest > 0 else None)
    rate.set_ylabel('learning rate')
    if len(scheme.groups) <= 8:
        rate.legend(fontsize=8)
    for row, spans in enumerate(scheme.augmentations.values()):
        widths = [(start, stop - start) for start, stop in spans]
        augmentation.broken_barh(widths, (row - 0.3, 0.6), color='tab:blue')
    augmentation.set_yticks(range(rows), list(scheme.augmentations), fontsize=8)
    augmentation.set_ylim(rows - 0.5, -0.5)
    if scheme.ema is not None:
        panels[2].plot(*scheme.ema.T, color='tab:green')
        panels[2].set_ylabel('EMA decay')
        panels[2].ticklabel_format(axis='y', useOffset=False)
    for axes in panels:
        if scheme.boundaries is not None:
            shade_stages(axes, scheme.boundaries, scheme.epochs)
        axes.grid(alpha=0.3, axis='x' if axes is augmentation else 'both')
        axes.set_axisbelow(True)
        axes.set_xlim(0, scheme.epochs)
    panels[-1].set_xlabel('epoch')
    if scheme.boundaries is not None:
        stages = augmentation.get_legend_handles_labels()
        figure.legend(*stages, loc='outside lower center', ncols=len(Stage))
    return figure


def format_scheme(scheme: TrainingScheme) -> str:
    """The scheme's numbers as text."""
    lines = [f'{scheme.epochs:g} epochs of {scheme.iters_per_epoch} iterations']
    lines += [
        f'learning rate {group.rates[0]:.4g} at first, {group.rates.max():.4g} at most, '
        f'{group.rates[-1]:.4g} at last: {group.label}'
        for group in scheme.groups
    ]
    for name, spans in scheme.augmentations.items():
        lines.append(f'{name}: epochs ' + ', '.join(f'{a:g} to {b:g}' for a, b in spans))
    if scheme.ema is not None:
        lines.append(f'EMA decay {scheme.ema[0, 1]:.6g} at first, {scheme.ema[-1, 1]:.6g} at last')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='training config')
    parser.add_argument('--images', type=int, help='training images; default: of the data set')
    parser.add_argument(
        '--processes', type=int, default=1, help='processes, e.g. 8 for a config named 8xb2'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('training_scheme.png'), help='image to write'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value pairs')
    args = parser.parse_args()
    try:
        config = load_config(args.config, args.cfg_options)
        scheme = training_scheme(config, args.images, args.processes)
        save_figure(draw_scheme(scheme, Path(args.config).stem), args.out)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    print(format_scheme(scheme))
    print(args.out)


if __name__ == '__main__':
    main()
