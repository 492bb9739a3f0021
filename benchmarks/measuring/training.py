"""Times training steps, split into their parts, and the data pipeline."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deim_mmdet.engine.devices import laid_out, optimizer_options
from deim_mmdet.engine.fitting_batch_size import random_samples
from deim_mmdet.engine.hooks.dense_o2o_schedule_hook import set_stage
from deim_mmdet.models.layers.input_channels import input_channels
from deim_mmdet.utils import Stage

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn
from torch.utils.data import Dataset

from .timing import Spans, Timing, make_timer

#: Parts of a training step, in order. ``forward`` is the net, with denoising and batch augments.
PARTS = ('forward', 'criterion', 'backward', 'optimizer')


class TrainingStep:
    """A training step on random images; each call makes one step and times its parts.

    Args:
        model: The detector; it is moved to the device.
        optim_wrapper: Config of the optimiser.
        batch: Number of images.
        size: Height and width of the images.
        objects: Number of objects in each image.
        device: ``'cpu'`` or ``'cuda'``.
        amp: Mixed precision: float16 on a GPU, bfloat16 on a CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        optim_wrapper: ConfigDict,
        batch: int,
        size: tuple[int, int],
        objects: int = 10,
        device: str = 'cpu',
        amp: bool = False,
    ) -> None:
        # As the trainer makes them.
        model = laid_out(model.train().to(device), device, dict(channels_last=True))
        if amp:
            optim_wrapper = ConfigDict(optim_wrapper, type='AmpOptimWrapper')
        optim_wrapper = optimizer_options(optim_wrapper, device)
        self.model, self.optimizer = model, build_optim_wrapper(model, optim_wrapper)
        self.timer = make_timer(device)
        self.spans: list[Spans] = []
        images, self.samples = _random_batch(model, batch, size, objects)
        self.images = images.to(device, memory_format=torch.channels_last)

    def __call__(self) -> None:
        self.timer.mark()
        with self._criterion_marked(), self.optimizer.optim_context(self.model):
            losses = self.model.loss(self.images, self.samples)
            loss, _ = self.model.parse_losses(losses)
        self.timer.mark()
        self.optimizer.backward(loss)
        self.timer.mark()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.timer.mark()
        self.spans.append(self.timer.read())

    @contextmanager
    def _criterion_marked(self) -> Iterator[None]:
        """Mark where the criterion begins and where it ends."""
        criterion = self.model.bbox_head.criterion
        begin = criterion.register_forward_pre_hook(lambda *_: self.timer.mark())
        finish = criterion.register_forward_hook(lambda *_: self.timer.mark())
        try:
            yield
        finally:
            begin.remove()
            finish.remove()

    def timings(self, clock: str = 'device') -> dict[str, Timing]:
        """Times of every part and of the whole step (``total``), over all calls but the first.

        Args:
            clock: ``'device'`` or ``'host'``, see :class:`~.timing.Spans`.
        """
        rows = []
        for spans in self.spans[1:]:
            before, criterion, after, backward, optimizer = getattr(spans, clock)
            rows.append((before + after, criterion, backward, optimizer))
        parts = dict(zip(PARTS, zip(*rows, strict=True), strict=True))
        parts['total'] = [sum(row) for row in rows]
        return {part: Timing.of(seconds) for part, seconds in parts.items()}


def _random_batch(
    model: nn.Module, batch: int, size: tuple[int, int], objects: int
) -> tuple[Tensor, list[DetDataSample]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, input_channels(model), *size, generator=generator)
    return images, random_samples(batch, size, objects, model.bbox_head.num_classes)


def pipeline_speed(dataset: Dataset, num_images: int) -> dict[str, float]:
    """Images a second of the training pipeline in this process, at each stage of Dense O2O.

    Args:
        dataset: A training set.
        num_images: Number of samples that are timed at each stage.
    """
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    speeds = {}
    for stage in Stage:
        set_stage(stage, dataset)
        order = np.random.default_rng(0).integers(len(dataset), size=num_images + 1)
        speeds[stage.label] = _images_per_second(dataset.__getitem__, order)
    return speeds


def _images_per_second(load: Callable[[int], object], order: np.ndarray) -> float:
    load(int(order[0]))
    started = time.perf_counter()
    for index in order[1:]:
        load(int(index))
    return (len(order) - 1) / (time.perf_counter() - started)
