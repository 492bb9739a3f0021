"""Mixup and multi-scale of Dense O2O, on batches: ``batch_augments`` of ``DetDataPreprocessor``."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from deim_mmdet.utils.arguments import check_count, check_probability, check_range
from deim_mmdet.utils.stage import Stage

SIZE_STEP = 32


class StagedBatchAugment(nn.Module):
    """A batch augment that acts in some stages only; dense until :meth:`set_stage` is called.

    One that only picks pixels, whatever their values, says so by ``picks_pixels``: it may act
    before the images are normalised, and on any type. The others treat all pixels alike, and may
    write over the images where they are called with ``overwrite=True``.
    """

    picks_pixels = False

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage.DENSE

    def set_stage(self, stage: Stage) -> None:
        """Switch to ``stage``."""
        self.stage = Stage(stage)


@MODELS.register_module()
class DenseO2OMixUp(StagedBatchAugment):
    """Blend every image of a batch with the one before it; objects of both (DEIM, section 3.1).

    Acts in the dense stage. Unlike mixup for classification the objects keep their full weight.

    Args:
        prob: Probability for a batch. Default 0.5.
        ratio: Range of the share of the image itself, uniform. Default (0.45, 0.55).

    Example:
        >>> data_preprocessor = dict(
        ...     type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True,
        ...     batch_augments=[dict(type='DenseO2OMixUp'), dict(type='DenseO2OMultiScale')])
    """

    def __init__(self, prob: float = 0.5, ratio: Sequence[float] = (0.45, 0.55)) -> None:
        super().__init__()
        self.prob = check_probability(self, 'prob', prob)
        self.ratio = check_range(self, 'ratio', ratio, 0, 1)

    def forward(
        self, inputs: Tensor, data_samples: list[DetDataSample], overwrite: bool = False
    ) -> tuple[Tensor, list[DetDataSample]]:
        """Mix images and objects.

        Args:
            inputs: Images (B, 3, H, W), float.
            data_samples: B samples with boxes in pixels of the images.
            overwrite: Whether the new images may take the place of ``inputs`` in memory.

        Returns:
            New images and the samples, changed in place.
        """
        if self.stage is not Stage.DENSE or np.random.rand() >= self.prob:
            return inputs, data_samples
        share = np.random.uniform(*self.ratio)
        if not overwrite:
            inputs = inputs.clone()
        _blend_with_previous(inputs, 1 - share)
        mixed = [
            _objects_of_both(sample, previous)
            for sample, previous in zip(
                data_samples, [data_samples[-1], *data_samples[:-1]], strict=True
            )
        ]
        for sample, objects in zip(data_samples, mixed, strict=True):
            for name, value in objects.items():
                setattr(sample, name, value)
            # The previous image may reach into the padding of this one.
            sample.set_metainfo({'img_shape': tuple(inputs.shape[-2:])})
        return inputs, data_samples

    def extra_repr(self) -> str:
        return f'prob={self.prob}, ratio={self.ratio}, stage={self.stage.label}'


@MODELS.register_module()
class DenseO2OMultiScale(StagedBatchAugment):
    """Resize a whole batch to a random size, in all stages but the one without augmentation.

    Sizes go from 0.75 to 1.25 times the base size in steps of 32 (for 640: 480, 512, ..., 800),
    the base size entering the draw ``base_size_repeat`` times. Each side of the input is scaled by
    size / ``base_size`` and rounded to a multiple of 32, so that inputs need not be square.

    Args:
        base_size: Size of the input, divisible by 32. Default 640.
        base_size_repeat: Weight of the base size in the draw; None for a fixed size. Default 4.

    Example:
        >>> data_preprocessor = dict(
        ...     type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True,
        ...     batch_augments=[dict(type='DenseO2OMultiScale', base_size=320)])
    """

    picks_pixels = True

    def __init__(self, base_size: int = 640, base_size_repeat: int | None = 4) -> None:
        super().__init__()
        self.base_size = check_count(self, 'base_size', base_size)
        if base_size % SIZE_STEP:
            raise ValueError(
                f'{type(self).__name__}: base_size must be divisible by {SIZE_STEP}, '
                f'got {base_size}'
            )
        if base_size_repeat is not None:
            check_count(self, 'base_size_repeat', base_size_repeat)
        self.base_size_repeat = base_size_repeat
        self.sizes = training_sizes(base_size, base_size_repeat)

    def forward(
        self, inputs: Tensor, data_samples: list[DetDataSample]
    ) -> tuple[Tensor, list[DetDataSample]]:
        """Resize images and objects.

        Args:
            inputs: Images (B, 3, H, W), float or uint8.
            data_samples: B samples with boxes in pixels of the images.

        Returns:
            Images (B, 3, H', W') and the samples, changed in place: boxes, ``img_shape``,
            ``pad_shape`` and ``batch_input_shape``.
        """
        if self.stage is Stage.NO_AUG:
            return inputs, data_samples
        scale = self.sizes[np.random.randint(len(self.sizes))] / self.base_size
        old = tuple(inputs.shape[-2:])
        new = tuple(max(SIZE_STEP, round(side * scale / SIZE_STEP) * SIZE_STEP) for side in old)
        if new == old:
            return inputs, data_samples
        inputs = _resize_nearest(inputs, new)
        y_scale, x_scale = new[0] / old[0], new[1] / old[1]
        for sample in data_samples:
            for name in ('gt_instances', 'ignored_instances'):
                if 'bboxes' in sample.get(name, ()):
                    _rescale(sample.get(name), x_scale, y_scale)
            shapes = {
                name: (round(sample.get(name)[0] * y_scale), round(sample.get(name)[1] * x_scale))
                for name in ('img_shape', 'pad_shape')
                if name in sample
            }
            sample.set_metainfo({**shapes, 'batch_input_shape': new})
        return inputs, data_samples

    def extra_repr(self) -> str:
        return (
            f'base_size={self.base_size}, base_size_repeat={self.base_size_repeat}, '
            f'stage={self.stage.label}'
        )


def training_sizes(base_size: int, base_size_repeat: int | None) -> list[int]:
    """Sizes of the multi-scale draw in ascending order, the base size repeated.

    Multiples of 32 from 0.75 to 1.25 times ``base_size``, the ends rounded down.
    """
    if base_size_repeat is None:
        return [base_size]
    lowest, highest = (int(base_size * factor) // SIZE_STEP * SIZE_STEP for factor in (0.75, 1.25))
    others = [s for s in range(lowest, highest + 1, SIZE_STEP) if s != base_size]
    return sorted([*others, *[base_size] * base_size_repeat])


def _blend_with_previous(images: Tensor, share: float) -> None:
    """Move each image (B, 3, H, W) by ``share`` towards the one before it, in place.

    From the last one on, so that each finds the one before it unchanged: a second batch in memory
    would cost more time than the arithmetic.
    """
    last = images[-1].clone()
    for index in range(len(images) - 1, 0, -1):
        images[index].lerp_(images[index - 1], share)
    images[0].lerp_(last, share)


def _resize_nearest(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) at ``size`` (height, width), by the nearest pixel as published."""
    if images.dtype != torch.uint8 or images.device.type != 'cpu':
        return F.interpolate(images, size=size, mode='nearest')
    # The same pixels in a third of the time, but for rounding errors of torch's.
    resized = torch.empty((*images.shape[:2], *size), dtype=torch.uint8)
    for plane, out in zip(images.flatten(0, 1).numpy(), resized.flatten(0, 1).numpy(), strict=True):
        cv2.resize(plane, size[::-1], dst=out, interpolation=cv2.INTER_NEAREST)
    return resized


def _objects_of_both(sample: DetDataSample, previous: DetDataSample) -> dict[str, InstanceData]:
    """Joint objects of two samples, by the name of the kind of object."""
    return {
        name: InstanceData.cat([sample.get(name), previous.get(name)])
        for name in ('gt_instances', 'ignored_instances')
        if name in sample and name in previous
    }


def _rescale(instances: InstanceData, x_scale: float, y_scale: float) -> None:
    """Scale ``instances.bboxes`` in place of the old ones."""
    boxes = instances.bboxes
    if isinstance(boxes, BaseBoxes):
        boxes.rescale_((x_scale, y_scale))
    else:
        instances.bboxes = boxes * boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])
