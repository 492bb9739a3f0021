"""Count positives per image with one-to-one, Dense one-to-one and one-to-many matching.

    python tools/analysis/match_statistics.py configs/deim_dfine_l.py --num 1000
    python tools/analysis/match_statistics.py CONFIG --checkpoint FILE --out statistics.png

Images go through the config's own training pipeline and batch augments. The tool counts, for one
matching (each decoder layer has its own):

- *one-to-one*: objects of an image in the no-augmentation stage (flip and resize; for a config
  without stages, its own augmentation), but no more than the head has queries. Hungarian matching
  assigns exactly these, whatever the model predicts.
- *Dense one-to-one*: the same for the same images in the dense stage, with mosaics and mixup.
- *one-to-many*: cells that mmdet's SimOTAAssigner makes positive in the images of the first count.
  They depend on the predictions. With --checkpoint these are the model's: box and scores at every
  cell of its feature levels, from which query selection chooses. Otherwise they are a stand-in's:
  every cell of a grid with the strides --strides predicts the smallest object that it lies in (or
  else the nearest one), with the IoU of --iou and equal scores. SimOTA then makes ten times the
  IoU, cut down to an integer, positive for an object with that many cells. Low IoUs are like the
  beginning of a training, high ones like its end.

Writes a plot and, beside it, the table as .csv.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deim_mmdet.checkpoints.loading import SCHEME
from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.hooks import DenseO2OScheduleHook
from deim_mmdet.engine.hooks.dense_o2o_schedule_hook import set_stage
from deim_mmdet.models.dense_heads.flat_config import setting
from deim_mmdet.models.layers.query_selection import make_anchors
from deim_mmdet.utils import Stage
from deim_mmdet.utils.components import find_component
from deim_mmdet.utils.tables import format_table
from deim_mmdet.visualization.figures import save_with_table

import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.models.task_modules.assigners import SimOTAAssigner
from mmdet.registry import DATASETS, HOOKS, MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, get_box_tensor
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint, set_random_seed
from mmengine.structures import InstanceData
from mmengine.utils import ProgressBar
from torch import Tensor, nn

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ONE_TO_ONE, DENSE_ONE_TO_ONE = 'one-to-one', 'Dense one-to-one'


@dataclass
class CellPredictions:
    """The predictions for an image with N cells and C classes, for a one-to-many matching.

    Args:
        cells: (N, 4) centre and stride of each cell: x, y, stride_x, stride_y in pixels.
        boxes: (N, 4) predicted x1, y1, x2, y2 in pixels.
        scores: (N, C) in [0, 1].
    """

    cells: Tensor
    boxes: Tensor
    scores: Tensor


class TrainingImages:
    """Batches of a config's training, in any stage.

    Args:
        config: A training config.

    Raises:
        ValueError: The config describes no training, or its data set is empty.
    """

    def __init__(self, config: Config) -> None:
        preprocessor = (config.get('model') or {}).get('data_preprocessor')
        if not config.get('train_dataloader') or not preprocessor:
            raise ValueError(
                f'{config.filename} needs train_dataloader and model.data_preprocessor: name a '
                'training config'
            )
        self.dataset = DATASETS.build(config.train_dataloader.dataset)
        self.preprocessor = MODELS.build(preprocessor)
        self.batch_size = config.train_dataloader.batch_size
        if len(self.dataset) == 0:
            raise ValueError(f'the training set of {config.filename} has no images')

    def choose(self, number: int) -> np.ndarray:
        """Indexes of up to ``number`` images in random order; whole batches if there is one."""
        chosen = np.random.permutation(len(self.dataset))[:number]
        whole = len(chosen) // self.batch_size * self.batch_size
        return chosen[: whole or len(chosen)]

    def batches(self, indexes: np.ndarray, stage: Stage) -> Iterator[dict]:
        """The images as training sees them in ``stage``, batches of the data preprocessor."""
        set_stage(stage, self.dataset, self.preprocessor)
        for start in range(0, len(indexes), self.batch_size):
            images = [self.dataset[int(i)] for i in indexes[start : start + self.batch_size]]
            yield self.preprocessor(pseudo_collate(images), training=True)


def has_dense_stage(config: Config) -> bool:
    """Whether the config's schedule has a dense stage."""
    hook = find_component(HOOKS, config.get('custom_hooks'), DenseO2OScheduleHook)
    if hook is None:
        return False
    stages = hook.get('stages') or config.get('recipe', {}).get('stages', (0, 0, 0))
    return stages[1] > stages[0]


def query_limit(config: Config) -> float:
    """Number of queries of the config's head; infinite for a detector without queries."""
    model = config.model
    return (
        model.get('num_queries') or setting(model.get('bbox_head') or {}, 'num_queries') or np.inf
    )


def one_to_many(predictions: CellPredictions, objects: InstanceData) -> int:
    """Number of cells that SimOTA makes positive, with mmdet's default settings."""
    assigned = SimOTAAssigner().assign(
        InstanceData(priors=predictions.cells, bboxes=predictions.boxes, scores=predictions.scores),
        objects,
    )
    return int((assigned.gt_inds > 0).sum())


def make_cells(height: int, width: int, strides: Sequence[int]) -> Tensor:
    """Cells (N, 4) of grids over an input; see :class:`CellPredictions`.

    Args:
        height: Height of the input in pixels.
        width: Width of the input in pixels.
        strides: Strides of the grids in pixels.
    """
    cells = []
    for stride in strides:
        y, x = torch.meshgrid(
            torch.arange(stride / 2, height, stride),
            torch.arange(stride / 2, width, stride),
            indexing='ij',
        )
        size = torch.full_like(x, stride)
        cells.append(torch.stack([x, y, size, size], dim=-1).flatten(0, 1))
    return torch.cat(cells)


def stand_in_predictions(cells: Tensor, boxes: Tensor, iou: float) -> CellPredictions:
    """Every cell predicts its object, scaled down about the centre so that the IoU is ``iou``.

    Args:
        cells: (N, 4); see :class:`CellPredictions`.
        boxes: (n, 4) x1, y1, x2, y2 of the n objects in pixels, n > 0.
        iou: IoU of prediction and object, in (0, 1].
    """
    x, y = cells[:, 0, None], cells[:, 1, None]
    x1, y1, x2, y2 = boxes.T
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    areas = ((x2 - x1) * (y2 - y1)).expand(inside.shape).masked_fill(~inside, torch.inf)
    distances = (x - (x1 + x2) / 2) ** 2 + (y - (y1 + y2) / 2) ** 2
    own = boxes[torch.where(inside.any(1), areas.argmin(1), distances.argmin(1))]
    # A little more than iou, as SimOTA cuts the sum of ten IoUs down to an integer.
    shrink = (1 - min(1.0, iou + 1e-4) ** 0.5) / 2
    margin = torch.cat([own[:, 2:] - own[:, :2]] * 2, dim=1) * shrink
    predicted = own + margin * own.new_tensor([1, 1, -1, -1])
    return CellPredictions(cells, predicted, torch.full((len(cells), 1), 0.5))


class StandIn:
    """:func:`stand_in_predictions` for a batch, with one class.

    Args:
        iou: IoU of every prediction and its object.
        strides: Strides of the grids of cells in pixels.

    Raises:
        ValueError: ``iou`` lies outside of (0, 1] or a stride isn't positive.
    """

    def __init__(self, iou: float, strides: Sequence[int]) -> None:
        if not 0 < iou <= 1:
            raise ValueError(f'--iou: give values in (0, 1], got {iou}')
        if not all(stride > 0 for stride in strides):
            raise ValueError(f'--strides: give positive numbers of pixels, got {list(strides)}')
        self.iou = iou
        self.strides = strides

    def count(self, batch: dict) -> list[int]:
        """One-to-many positives of each image."""
        cells = make_cells(*batch['inputs'].shape[-2:], self.strides)
        counts = []
        for sample in batch['data_samples']:
            boxes = get_box_tensor(sample.gt_instances.bboxes)
            if not len(boxes):
                counts.append(0)
                continue
            objects = InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.long))
            counts.append(one_to_many(stand_in_predictions(cells, boxes, self.iou), objects))
        return counts


class TrainedModel:
    """A model with query selection, which scores every cell of its feature levels.

    Args:
        config: The model's config.
        checkpoint: Path or address of its weights.

    Raises:
        ValueError: The config's model has no query selection.
    """

    def __init__(self, config: Config, checkpoint: str) -> None:
        if config.model.get('backbone'):
            config.model.backbone.init_cfg = None
        self.model = MODELS.build(config.model).eval()
        selection = getattr(getattr(self.model, 'bbox_head', None), 'query_selection', None)
        if not isinstance(selection, nn.Module):
            raise ValueError(
                f'--checkpoint: {config.filename} has a {type(self.model).__name__} without query '
                'selection, whose predictions at single cells are not known: leave it out'
            )
        load_checkpoint(self.model, f'{SCHEME}{checkpoint}', map_location='cpu')
        self._selection = selection
        self._tokens: tuple = ()
        selection.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple) -> None:
        self._tokens = args

    @torch.no_grad()
    def count(self, batch: dict) -> list[int]:
        """One-to-many positives of each image."""
        images, samples = batch['inputs'], batch['data_samples']
        height, width = images.shape[-2:]
        self.model.bbox_head(self.model.extract_feat(images))
        memory, shapes = self._tokens
        selection = self._selection
        anchors, valid = make_anchors(shapes, memory.device, memory.dtype)
        tokens = selection.norm(selection.proj(valid * memory))
        scale = memory.new_tensor([width, height, width, height])
        boxes = bbox_cxcywh_to_xyxy((selection.box(tokens) + anchors).sigmoid()) * scale
        scores = selection.score(tokens).sigmoid()
        strides = torch.cat(
            [memory.new_tensor([width / w, height / h]).expand(h * w, 2) for h, w in shapes]
        )
        cells = torch.cat([anchors[:, :2].sigmoid() * scale[:2], strides], dim=1)
        # Cells at the border have no anchor and are never selected.
        kept = valid[:, 0]
        return [
            one_to_many(CellPredictions(cells[kept], b[kept], s[kept]), sample.gt_instances)
            for b, s, sample in zip(boxes, scores, samples, strict=True)
        ]


def match_statistics(
    config: Config,
    number: int,
    matchings: dict[str, StandIn | TrainedModel],
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Positives of each image by the kind of matching.

    Args:
        config: A training config.
        number: Largest number of images to take.
        matchings: One-to-many matchings by name.
        seed: Seed of augmentations and choice of images.

    Returns:
        By name of the matching, (N,) int positives of the same N images; one-to-one first.

    Raises:
        ValueError: The config describes no training, or the images have no object.
    """
    set_random_seed(seed)
    images = TrainingImages(config)
    indexes, limit = images.choose(number), query_limit(config)
    dense = has_dense_stage(config)
    counts = {ONE_TO_ONE: []} | ({DENSE_ONE_TO_ONE: []} if dense else {})
    counts |= {name: [] for name in matchings}

    def objects(batch: dict) -> list[int]:
        return [min(len(sample.gt_instances), limit) for sample in batch['data_samples']]

    progress = ProgressBar(len(indexes) * (1 + dense), file=sys.stderr)
    for batch in images.batches(indexes, Stage.NO_AUG):
        counts[ONE_TO_ONE] += objects(batch)
        for name, matching in matchings.items():
            counts[name] += matching.count(batch)
        progress.update(len(batch['data_samples']))
    if not any(counts[ONE_TO_ONE]):
        raise ValueError(
            f'no object in {len(indexes)} images of the training set of {config.filename}: look '
            'at its annotation file and class names'
        )
    for batch in images.batches(indexes, Stage.DENSE) if dense else ():
        counts[DENSE_ONE_TO_ONE] += objects(batch)
        progress.update(len(batch['data_samples']))
    sys.stderr.write('\n')
    return {name: np.array(values, dtype=int) for name, values in counts.items()}


def summarise(counts: dict[str, np.ndarray]) -> list[dict[str, str | int | float]]:
    """Rows of the table: mean, ratio to the mean of one-to-one, quantiles and maximum."""
    reference = counts[ONE_TO_ONE].mean()
    return [
        {
            'matching': name,
            'images': len(values),
            'mean': round(float(values.mean()), 3),
            'times one-to-one': round(float(values.mean() / reference), 3),
            **{f'{q:.0%}': round(float(np.quantile(values, q)), 3) for q in QUANTILES},
            'maximum': int(values.max()),
        }
        for name, values in counts.items()
    ]


def draw_statistics(counts: dict[str, np.ndarray]) -> Figure:
    """Distribution of the positives per image, and their means with 5–95 % ranges."""
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    distribution, means = figure.subplots(1, 2, width_ratios=[1.4, 1])
    for row, (name, values) in enumerate(counts.items()):
        ordered = np.sort(values)
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        (line,) = distribution.step(ordered, share, where='post', label=name)
        low, high = np.quantile(values, [0.05, 0.95])
        means.barh(row, values.mean(), color=line.get_color(), height=0.6)
        means.plot([low, high], [row, row], color='black', marker='|')
        means.annotate(
            f'{values.mean():.1f}',
            (max(high, values.mean()), row),
            xytext=(5, 0),
            textcoords='offset points',
            va='center',
        )
    distribution.set_xscale('symlog', linthresh=1)
    distribution.set_xlim(left=0)
    distribution.set_ylim(0, 1)
    distribution.set_xlabel('positives in an image')
    distribution.set_ylabel('share of images with at most as many')
    distribution.grid(alpha=0.3)
    distribution.legend(fontsize=8)
    means.set_yticks(range(len(counts)), [name.replace(', ', ',\n') for name in counts])
    means.invert_yaxis()
    means.margins(x=0.15)
    means.set_xlim(left=0)
    means.set_xlabel('mean positives an image (line: 5–95 %)')
    means.grid(alpha=0.3, axis='x')
    means.set_axisbelow(True)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='training config')
    parser.add_argument('--checkpoint', help='weights of its model, for one-to-many predictions')
    parser.add_argument('--num', type=int, default=500, help='most images to take')
    parser.add_argument(
        '--iou', type=float, nargs='+', default=[0.25, 0.75], help='IoUs of the stand-in'
    )
    parser.add_argument(
        '--strides', type=int, nargs='+', default=[8, 16, 32], help='strides of its grid, pixels'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('match_statistics.png'), help='image to write'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value pairs')
    args = parser.parse_args()
    try:
        if args.num < 1:
            raise ValueError(f'--num: give a positive number of images, got {args.num}')
        config = load_config(args.config, args.cfg_options)
        init_default_scope(config.get('default_scope', 'mmdet'))
        if args.checkpoint:
            name = f'one-to-many (SimOTA), {Path(args.checkpoint).name}'
            matchings = {name: TrainedModel(config, args.checkpoint)}
        else:
            matchings = {
                f'one-to-many (SimOTA), IoU {iou:g}': StandIn(iou, args.strides) for iou in args.iou
            }
        counts = match_statistics(config, args.num, matchings, args.seed)
        rows = summarise(counts)
        table = [list(rows[0]), *(list(row.values()) for row in rows)]
        written = save_with_table(draw_statistics(counts), table, args.out)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    print(format_table(table))
    print(args.out, written)


if __name__ == '__main__':
    main()
