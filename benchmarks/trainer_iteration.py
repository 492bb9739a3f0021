"""What an iteration of the trainer costs the host: time, calls of operators, reads of numbers.

    python benchmarks/trainer_iteration.py [--models deim_dfine_n ...] [--against CHECKOUT]

It trains on tiny images with all default hooks, so that hardly more than the host's own work is
left. A GPU starts a kernel for each call of an operator. Views and allocations are no kernels and
not counted. Reads are those of single numbers, wherever these are. With ``--against``, another
checkout of the repository takes turns with this one. Times are medians of the CPU time of an
iteration without logging, in one thread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import deim_mmdet  # noqa: F401  (before mmdet, where MMCV has no operators)
from deim_mmdet.engine.config import load_config

import cv2
import numpy as np
import torch
from measuring.operators import NO_KERNELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
OBJECTS, CLASSES = 10, 3
# Writing them takes time.
PICTURES = 64
READS = ('_local_scalar_dense', 'nonzero')


class Calls(TorchDispatchMode):
    """Counts calls of operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Watch:
    """Begins and ends the watch of each iteration, as the first and as the last hook.

    Args:
        count: Whether to count calls and reads, which takes time, instead of time alone.
        iterations: Number of iterations after which the training ends.
    """

    def __init__(self, count: bool, iterations: int) -> None:
        self.count = count
        self.iterations = iterations
        self.calls: list[int] = []
        self.reads: list[int] = []
        self.seconds: list[float] = []

    def before_train_iter(self, *_, **__) -> None:
        if self.count:
            self._mode = Calls()
            self._mode.__enter__()
        self._started = time.process_time()

    def after_train_iter(self, *_, **__) -> None:
        self.seconds.append(time.process_time() - self._started)
        if self.count:
            self._mode.__exit__(None, None, None)
            names = self._mode.names
            self.calls.append(sum(n for name, n in names.items() if name not in NO_KERNELS))
            self.reads.append(sum(names[name] for name in READS))
        if len(self.seconds) == self.iterations:
            raise StopIteration


class End(Hook):
    """Ends a training by ``StopIteration`` after some iterations, as the last hook."""

    priority = 'LOWEST'

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == self.iterations - 1:
            raise StopIteration


def write_data_set(folder: Path, side: int, count: int) -> None:
    """Write random images of one size with random objects, in COCO format.

    There are at most 64 pictures, each of which stands for several images.
    """
    rng = np.random.default_rng(0)
    for part in ('images', 'annotations'):
        (folder / part).mkdir()
    images, objects = [], []
    for index in range(1, count + 1):
        name = f'{index % PICTURES}.png'
        if index <= PICTURES:
            picture = rng.integers(256, size=(side, side, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / 'images' / name), picture)
        images.append(dict(id=index, file_name=name, height=side, width=side))
        for box in rng.uniform(side / 8, side / 2, size=(OBJECTS, 4)).tolist():
            number, area = len(objects), box[2] * box[3]
            objects.append(dict(id=number + 1, image_id=index, category_id=number % CLASSES + 1))
            objects[-1].update(bbox=box, area=area, iscrowd=0)
    names = ('RBC', 'WBC', 'Platelets')
    categories = [dict(id=index, name=name) for index, name in enumerate(names, 1)]
    content = json.dumps(dict(images=images, annotations=objects, categories=categories))
    for split in ('train', 'val', 'test'):
        (folder / f'annotations/{split}.json').write_text(content)


def training(root: Path, data: Path, model: str, side: int, batch: int, images: int) -> Config:
    """Config of a training on made-up images, with all default hooks.

    Args:
        root: The checkout that the config comes from.
        data: Empty folder for data set and work directory.
        model: Name of the model's config.
        side: Side of the images in pixels.
        batch: Images of an iteration.
        images: How many of them there are.
    """
    write_data_set(data, side, images)
    os.environ['BCCD_ROOT'] = str(data)
    size = dict(image_size=side)
    cfg = load_config(root / f'configs/{model}.py', size)
    for key, value in load_config(root / 'configs/deim_dfine_n_bccd.py', size).items():
        if key.endswith(('_dataloader', '_evaluator', '_set')):
            cfg[key] = value
    cfg.model.bbox_head.num_classes = CLASSES
    cfg.model.backbone.init_cfg = None
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=batch, num_workers=0, persistent_workers=False)
    cfg.train_cfg.max_epochs = 100
    cfg.work_dir = str(data / 'run')
    return cfg


def of_one_size(cfg: Config) -> Config:
    """A config whose training keeps the size of its images; it is changed in place."""
    augments = cfg.model.data_preprocessor.get('batch_augments') or []
    kept = [each for each in augments if each.type != 'DenseO2OMultiScale']
    cfg.model.data_preprocessor.batch_augments = kept
    return cfg


def measure(root: Path, model: str, side: int, batch: int, count: bool, iterations: int) -> dict:
    """Medians of seconds, calls and reads of an iteration; the first two are left out."""
    with tempfile.TemporaryDirectory() as work:
        # More images than the measured iterations take, so that no epoch ends.
        cfg = training(root, Path(work), model, side, batch, batch * (iterations + 4))
        if count:
            # Version 0.1 did so on a GPU alone.
            cfg.optim_wrapper.optimizer.fused = True
        runner = RUNNERS.build(cfg)
        watch = Watch(count, iterations + 2)
        for name, priority in (('before_train_iter', 'HIGHEST'), ('after_train_iter', 'LOWEST')):
            setattr(hook := Hook(), name, getattr(watch, name))
            runner.register_hook(hook, priority=priority)
        with suppress(StopIteration):
            runner.train()
    measured = dict(seconds=watch.seconds, calls=watch.calls, reads=watch.reads)
    return {name: statistics.median(values[2:]) for name, values in measured.items() if values}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--models', nargs='+', default=['deim_dfine_n', 'deim_dfine_l'])
    parser.add_argument('--side', type=int, default=64, help='side of the images in pixels')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--iterations', type=int, default=12, help='of each round')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--against', type=Path, help='another checkout of this repository')
    parser.add_argument('--child', choices=('time', 'count'), help=argparse.SUPPRESS)
    parser.add_argument('--root', type=Path, default=ROOT, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.child:
        torch.set_num_threads(1)
        (model,) = args.models
        found = measure(
            args.root, model, args.side, args.batch, args.child == 'count', args.iterations
        )
        print(json.dumps(found))
        return

    def run(root: Path, model: str, kind: str) -> dict:
        options = ('--child', kind, '--root', root, '--models', model, '--side', args.side)
        options += ('--batch', args.batch, '--iterations', args.iterations)
        # The package of that checkout, whatever is installed.
        environment = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1')
        command = [sys.executable, __file__, *map(str, options)]
        done = subprocess.run(
            command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    roots = [ROOT, *([args.against.resolve()] if args.against else [])]
    for model in args.models:
        counts = [run(root, model, 'count') for root in roots]
        times = [[] for _ in roots]
        for number in range(args.rounds):
            for root, values in zip(roots, times, strict=True):
                values.append(run(root, model, 'time')['seconds'])
            print(f'{model}: round {number + 1} of {args.rounds} done', file=sys.stderr)
        for root, count, values in zip(roots, counts, times, strict=True):
            print(
                f'{model} in {root}: {count["calls"]:.0f} calls of operators, '
                f'{count["reads"]:.0f} reads, {statistics.median(values) * 1000:.0f} ms'
            )
        if args.against:
            ratio = statistics.median(times[1]) / statistics.median(times[0])
            print(f'{model}: the host is {ratio:.2f} times as fast')


if __name__ == '__main__':
    main()
