"""Show what a config's training sees in each stage of the Dense O2O schedule.

    python tools/analysis/show_samples.py configs/deim_dfine_l.py --out samples.png

Samples go through the data set's transforms and the data preprocessor's batch augments, as in
training. The boxes are those that the losses get.
"""

import argparse
from pathlib import Path

from deim_mmdet import compat
from deim_mmdet.datasets.pictures import as_picture
from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.faults import EXPLAINED, MISTAKES, without_traceback
from deim_mmdet.engine.hooks.dense_o2o_schedule_hook import set_stage
from deim_mmdet.utils import Stage
from deim_mmdet.visualization import contact_sheet, draw_tile

import cv2
import numpy as np
from mmdet.models import DetDataPreprocessor
from mmdet.registry import DATASETS, MODELS
from mmengine.config import DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from torch import Tensor
from torch.utils.data import Dataset


def draw_batch(dataset, preprocessor, indices: list[int], side: int) -> tuple[list, list[int]]:
    """Pictures of one training batch with boxes, and the number of objects in each image."""
    batch = preprocessor(pseudo_collate([dataset[index] for index in indices]), training=True)
    tiles, counts = [], []
    for inputs, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
        objects = sample.gt_instances
        boxes = getattr(objects.bboxes, 'tensor', objects.bboxes).numpy()
        classes = dataset.metainfo['classes'] if len(boxes) <= 20 else ()
        image = network_input_as_picture(inputs, preprocessor)
        tiles.append(draw_tile(image, boxes, objects.labels.numpy(), classes, side=side))
        counts.append(len(boxes))
    return tiles, counts


def network_input_as_picture(inputs: Tensor, preprocessor: DetDataPreprocessor) -> np.ndarray:
    """A normalised image (C, H, W) with the values it was loaded with: (H, W, 3) uint8, BGR."""
    if getattr(preprocessor, 'mean', None) is not None:
        inputs = inputs * preprocessor.std + preprocessor.mean
    image = inputs.permute(1, 2, 0).numpy()
    if compat.exchanges_channels(preprocessor):
        image = image[..., ::-1]
    if image.shape[2] == 3 and not getattr(preprocessor, 'keep_values', False):
        # Values of bytes: as_picture would hide changes of brightness and contrast.
        return np.ascontiguousarray(image.round().clip(0, 255).astype(np.uint8))
    return as_picture(image)


def show_samples(
    dataset: Dataset,
    preprocessor: DetDataPreprocessor,
    columns: int,
    rows: int,
    side: int,
    seed: int,
) -> np.ndarray:
    """Draw samples of every stage.

    Args:
        dataset: A training set.
        preprocessor: The model's, with its batch augments.
        columns: Number of images of a batch.
        rows: Number of batches of each stage.
        side: Side of one picture in pixels.
        seed: Seed of augmentations and choice of images.

    Returns:
        Contact sheet, (H, W, 3) uint8, BGR.
    """
    sheet, captions = [], []
    for stage in Stage:
        set_random_seed(seed)
        set_stage(stage, dataset, preprocessor)
        for _ in range(rows):
            indices = np.random.randint(len(dataset), size=columns).tolist()
            tiles, counts = draw_batch(dataset, preprocessor, indices, side)
            sheet.append(tiles)
            captions.append(f'{stage.label}: {np.mean(counts):.1f} objects an image')
    return contact_sheet(sheet, captions)


@without_traceback(*EXPLAINED)
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='training config')
    parser.add_argument('--out', type=Path, default=Path('samples.png'), help='image to write')
    parser.add_argument('--columns', type=int, default=6, help='images of a batch')
    parser.add_argument('--rows', type=int, default=1, help='batches of each stage')
    parser.add_argument('--side', type=int, default=256, help='side of one picture, pixels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value pairs')
    args = parser.parse_args()
    with without_traceback(*MISTAKES):
        config = load_config(args.config, args.cfg_options)
        init_default_scope(config.get('default_scope', 'mmdet'))
        dataset = DATASETS.build(config.train_dataloader.dataset)
        preprocessor = MODELS.build(config.model.data_preprocessor)
    sheet = show_samples(dataset, preprocessor, args.columns, args.rows, args.side, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(args.out), sheet):
        raise SystemExit(f'could not write {args.out}')
    print(args.out)


if __name__ == '__main__':
    main()
