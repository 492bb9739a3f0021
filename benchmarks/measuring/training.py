"""Times training steps, split into their parts, and the data pipeline."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deim_mmdet.deployment.cpu import optimize_for_cpu
from deim_mmdet.engine.hooks.dense_o2o_schedule_hook import staged_parts
from deim_mmdet.utils import Stage

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .timing import Timing

#: Parts of a training step, in order. ``forward`` is the net, with denoising and batch augments.
PARTS = ('forward', 'criterion', 'backward', 'optimizer')


class TrainingStep:
    """A training step on random images; each call makes one step and times its parts.

    Args:
        model: The detector.
        optim_wrapper: Config of the optimiser.
        batch: Number of images.
        size: Height and width of the images.
        objects: Number of objects in each image.
    """

    def __init__(
        self,
        model: nn.Module,
        optim_wrapper: ConfigDict,
        batch: int,
        size: tuple[int, int],
        objects: int = 10,
    ) -> None:
        # DEIMRunner does the same on a CPU.
        self.model = optimize_for_cpu(model.train())
        self.optimizer = build_optim_wrapper(model, optim_wrapper)
        self.seconds = {part: [] for part in PARTS}
        self.images, self.samples = _random_batch(model.bbox_head.num_classes, batch, size, objects)

    def __call__(self) -> None:
        started = time.perf_counter()
        with self._criterion_timed() as spent:
            losses = self.model.loss(self.images, self.samples)
            loss, _ = self.model.parse_losses(losses)
        forward = time.perf_counter()
        self.optimizer.backward(loss)
        backward = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        done = time.perf_counter()
        criterion = sum(spent)
        times = (forward - started - criterion, criterion, backward - forward, done - backward)
        for part, seconds in zip(PARTS, times, strict=True):
            self.seconds[part].append(seconds)

    @contextmanager
    def _criterion_timed(self) -> Iterator[list[float]]:
        """Collect the seconds of each call of the criterion."""
        criterion, spent = self.model.bbox_head.criterion, []
        begin = criterion.register_forward_pre_hook(lambda *_: spent.append(-time.perf_counter()))

        def end(*_) -> None:
            spent[-1] += time.perf_counter()

        finish = criterion.register_forward_hook(end)
        try:
            yield spent
        finally:
            begin.remove()
            finish.remove()

    def timings(self) -> dict[str, Timing]:
        """Times of every part and of the whole step (``total``), over all calls but the first."""
        parts = {part: values[1:] for part, values in self.seconds.items()}
        parts['total'] = [sum(values) for values in zip(*parts.values(), strict=True)]
        return {part: Timing.of(values) for part, values in parts.items()}


def _random_batch(
    num_classes: int, batch: int, size: tuple[int, int], objects: int
) -> tuple[Tensor, list[DetDataSample]]:
    generator = torch.Generator().manual_seed(0)
    height, width = size
    samples = []
    for _ in range(batch):
        corners = torch.rand(objects, 2, 2, generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor([width, height])).flatten(1)
        labels = torch.randint(num_classes, (objects,), generator=generator)
        sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        samples.append(sample)
    return torch.rand(batch, 3, *size, generator=generator), samples


def pipeline_speed(cfg: Config, num_images: int) -> dict[str, float]:
    """Images a second of the training pipeline in this process, at each stage of Dense O2O.

    Args:
        cfg: The config; its training set must exist.
        num_images: Number of samples that are timed at each stage.
    """
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    parts = list(staged_parts(dataset))
    speeds = {}
    for stage in Stage:
        for part in parts:
            part.set_stage(stage)
        order = np.random.default_rng(0).integers(len(dataset), size=num_images + 1)
        speeds[stage.label] = _images_per_second(dataset.__getitem__, order)
    return speeds


def _images_per_second(load: Callable[[int], object], order: np.ndarray) -> float:
    load(int(order[0]))
    started = time.perf_counter()
    for index in order[1:]:
        load(int(index))
    return (len(order) - 1) / (time.perf_counter() - started)
