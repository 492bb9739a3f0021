"""Measure how many training samples a second one process makes, stage by stage.

    python benchmarks/data_pipeline.py
    python benchmarks/data_pipeline.py --ann-file train.json --img-dir images/ --out speed.json

This compares the data pipeline of DEIM-D-FINE-L (data set, transforms, data preprocessor with its
batch augments, all on the CPU) with ``step_by_step.py``, a plain implementation of the same work
on PIL images. Both start from the files on disk and end with float batches of 480 to 800 pixels and
their boxes. Each has one thread.

The two take turns on the same images, and take turns in being first. The first round isn't
counted. The ratio is the median of the rounds' ratios. Times are the process's own (CPU) time. On
an idle machine it equals the time on the clock; elsewhere other programs disturb it less. A data
loader's workers do the part called "samples"; the device does the rest.

By default the script makes the data set: pictures of 640 x 480 with about 14 round objects each,
much as in BCCD (JPEGs of 20 kB).
"""

import argparse
import contextlib
import json
import platform
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from deim_mmdet.datasets import stack_images
from deim_mmdet.engine.checks import base_datasets
from deim_mmdet.engine.hooks.dense_o2o_schedule_hook import set_stage
from deim_mmdet.utils import Stage

import cv2
import mmcv
import mmdet
import mmengine
import numpy as np
import PIL
import torch
from measuring.machine import processor
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from step_by_step import StepByStep

#: ``step_by_step.py`` has the size of its input and its augmentation.
CONFIG = Path(__file__).parent.parent / 'configs' / 'deim_dfine_l.py'


class OurPipeline:
    """Batches as in training.

    Args:
        config: A training config, with the augmentation of :data:`CONFIG`.
    """

    def __init__(self, config: Config) -> None:
        self.dataset = DATASETS.build(config.train_dataloader.dataset)
        self.preprocessor = MODELS.build(config.model.data_preprocessor)

    def set_stage(self, stage: Stage) -> None:
        """Let data set and batch augments act as in a stage."""
        set_stage(stage, self.dataset, self.preprocessor)

    def samples(self, indices: list[int]) -> dict:
        """The batch that a worker of the data loader gives."""
        return stack_images([self.dataset[index] for index in indices])

    def step_by_step(self, against: str) -> StepByStep:
        """The plain implementation on the same images and objects."""
        (base,) = base_datasets(self.dataset)
        infos = [base.get_data_info(index) for index in range(len(base))]
        objects = [[o for o in info['instances'] if not o['ignore_flag']] for info in infos]
        return StepByStep(
            [info['img_path'] for info in infos],
            [torch.tensor([o['bbox'] for o in of_image]).reshape(-1, 4) for of_image in objects],
            [torch.tensor([o['bbox_label'] for o in of_image]) for of_image in objects],
            against,
        )


def make_dataset(folder: Path, images: int, seed: int = 0) -> None:
    """Write ``images`` JPEGs and ``train.json`` to ``folder``."""
    rng = np.random.default_rng(seed)
    content = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'cell'}]}
    for number in range(images):
        noise = cv2.GaussianBlur(rng.normal(size=(480, 640, 3)), (0, 0), 6)
        img = 190 + 12 * noise / noise.std()
        for _ in range(rng.poisson(14)):
            side, ratio = rng.uniform(50, 150), rng.uniform(0.8, 1.2)
            width, height = side * ratio, side / ratio
            x, y = rng.uniform(0, 640 - width), rng.uniform(0, 480 - height)
            centre, axes = (x + width / 2, y + height / 2), (width / 2, height / 2)
            colour = rng.uniform(60, 200, 3)
            cv2.ellipse(img, (*map(int, centre),), (*map(int, axes),), 0, 0, 360, colour, -1)
            content['annotations'].append(
                dict(
                    id=len(content['annotations']),
                    image_id=number,
                    category_id=1,
                    bbox=[x, y, width, height],
                    area=width * height,
                    iscrowd=0,
                )
            )
        img = np.clip(cv2.GaussianBlur(img, (0, 0), 1) + rng.normal(size=img.shape), 0, 255)
        name = f'{number:03d}.jpg'
        cv2.imwrite(str(folder / name), img.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 80])
        content['images'].append(dict(id=number, file_name=name, width=640, height=480))
    (folder / 'train.json').write_text(json.dumps(content))


def measure(
    ours: OurPipeline, plain: StepByStep, stage: Stage, batches: int, batch_size: int, rounds: int
) -> dict:
    """Images a second of both in ``stage``, and their ratio.

    Returns:
        Medians over ``rounds``: ``images_per_s`` in all, of the samples alone and of the plain
        implementation; ``ratio`` with its least and greatest value; ``boxes_per_image`` of both.
    """
    ours.set_stage(stage)
    rates, boxes = {'ours': [], 'samples': [], 'plain': []}, {'ours': [], 'plain': []}
    for number in range(rounds + 1):
        chosen = np.random.randint(len(ours.dataset), size=(batches, batch_size)).tolist()
        for name in ('ours', 'plain') if number % 2 else ('plain', 'ours'):
            spent, spent_on_samples, found = 0.0, 0.0, 0
            for indices in chosen:
                start = time.process_time()
                if name == 'ours':
                    samples = ours.samples(indices)
                    spent_on_samples += time.process_time() - start
                    batch = ours.preprocessor(samples, training=True)
                    spent += time.process_time() - start
                    found += sum(len(s.gt_instances) for s in batch['data_samples'])
                else:
                    _, of_batch = plain.batch(indices, stage.label)
                    spent += time.process_time() - start
                    found += sum(map(len, of_batch))
            if number == 0:
                continue  # the first round also fetches files and memory
            images = batches * batch_size
            rates[name].append(images / spent)
            boxes[name].append(found / images)
            if name == 'ours':
                rates['samples'].append(images / spent_on_samples)
    ratios = np.array(rates['ours']) / np.array(rates['plain'])
    return {
        'images_per_s': round(float(np.median(rates['ours'])), 1),
        'samples_per_s': round(float(np.median(rates['samples'])), 1),
        'plain_images_per_s': round(float(np.median(rates['plain'])), 1),
        'ratio': round(float(np.median(ratios)), 2),
        'ratio_range': [round(float(ratios.min()), 2), round(float(ratios.max()), 2)],
        'boxes_per_image': {name: round(float(np.mean(of)), 1) for name, of in boxes.items()},
    }


def environment() -> dict:
    """Machine and versions."""
    modules = {'opencv': cv2, 'pillow': PIL, 'torch': torch, 'numpy': np}
    modules |= {'mmcv': mmcv, 'mmdet': mmdet, 'mmengine': mmengine}
    return {
        'machine': platform.machine(),
        'processor': processor(),
        'python': platform.python_version(),
        **{name: module.__version__ for name, module in modules.items()},
    }


@contextlib.contextmanager
def data_of(args: argparse.Namespace) -> Iterator[dict]:
    """Options of the single-image data set for the images to use."""
    if args.ann_file:
        yield dict(ann_file=str(args.ann_file), data_prefix=dict(img=str(args.img_dir)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder), images=64)
        yield dict(ann_file=f'{folder}/train.json', data_prefix=dict(img=folder))


def run(args: argparse.Namespace) -> dict:
    """Measure all stages; returns what goes to the JSON file."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    np.random.seed(args.seed)
    random.seed(args.seed)
    init_default_scope('mmdet')
    config = Config.fromfile(CONFIG)
    results = {}
    with data_of(args) as options:
        config.train_dataloader.dataset.dataset.update(data_root='', **options)
        ours = OurPipeline(config)
        plain = ours.step_by_step(args.against)
        print(f'{"stage":16}{"samples/s":>10}{"images/s":>10}{args.against:>12}{"ratio":>7}  range')
        for stage in Stage:
            row = measure(ours, plain, stage, args.batches, args.batch_size, args.rounds)
            results[stage.label] = row
            low, high = row['ratio_range']
            print(
                f'{stage.label:16}{row["samples_per_s"]:10.1f}{row["images_per_s"]:10.1f}'
                f'{row["plain_images_per_s"]:12.1f}{row["ratio"]:7.2f}  {low:.2f}–{high:.2f}'
            )
    setting = {key: str(value) for key, value in vars(args).items() if key != 'out'}
    return {'environment': environment(), 'setting': setting, 'stages': results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--ann-file', type=Path, help='COCO annotation file, in place of made data')
    parser.add_argument('--img-dir', type=Path, help='folder of its images')
    parser.add_argument(
        '--against',
        choices=('pil', 'torchvision'),
        default='pil',
        help="the plain transforms: ours on PIL, or torchvision's",
    )
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--batches', type=int, default=6, help='batches of a round')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, help='JSON file to write')
    args = parser.parse_args()
    if (args.ann_file is None) != (args.img_dir is None):
        parser.error('--ann-file and --img-dir go together')
    results = run(args)
    print(json.dumps(results['environment']))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + '\n')
        print(args.out)


if __name__ == '__main__':
    main()
