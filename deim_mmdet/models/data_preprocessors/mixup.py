"""Mixup of Dense O2O, on batches."""

from collections.abc import Sequence

from deim_mmdet.utils.arguments import check_number, check_range
from deim_mmdet.utils.stage import Stage

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BaseInstanceMasks
from mmengine.structures import InstanceData
from torch import Tensor

from .staged_batch_augment import StagedBatchAugment, note_use_of_padding, padded, refusal


@MODELS.register_module()
class DenseO2OMixUp(StagedBatchAugment):
    """Blend every image of a batch with the one before it; each gets the objects of both.

    It acts in the dense stage (DEIM, arXiv 2412.04234, section 3.1). Unlike in mixup for
    classification (arXiv 1710.09412), objects keep their full weight. They may have masks and key
    points. A batch of one image stays as it is.

    Args:
        prob: Probability for a batch. Default 0.5.
        ratio: Range of the image's own share in [0, 1], drawn uniformly. Default (0.45, 0.55).

    Raises:
        ValueError: An argument is out of range. Or samples have what two images cannot share, such
            as a semantic map.

    Example:
        >>> data_preprocessor = dict(
        ...     type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True,
        ...     batch_augments=[dict(type='DenseO2OMixUp'), dict(type='DenseO2OMultiScale')])
    """

    def __init__(self, prob: float = 0.5, ratio: Sequence[float] = (0.45, 0.55)) -> None:
        super().__init__()
        self.prob = check_number(self, 'prob', prob, 0, 1)
        self.ratio = check_range(self, 'ratio', ratio, 0, 1)

    def forward(
        self, inputs: Tensor, data_samples: list[DetDataSample], overwrite: bool = False
    ) -> tuple[Tensor, list[DetDataSample]]:
        """Mix images and objects.

        Args:
            inputs: Images (B, C, H, W) of any number of channels, float.
            data_samples: B samples with boxes in pixels of the images.
            overwrite: Whether the new images may take the place of ``inputs`` in memory.

        Returns:
            New images and the samples, changed in place.
        """
        # In any stage, so that training fails at its start, not where the dense stage begins.
        for sample in data_samples:
            self._check(sample)
        if self.stage is not Stage.DENSE or len(inputs) < 2 or np.random.rand() >= self.prob:
            return inputs, data_samples
        share = np.random.uniform(*self.ratio)
        if not overwrite:
            inputs = inputs.clone()
        _blend_with_previous(inputs, 1 - share)
        size = tuple(inputs.shape[-2:])
        for sample in data_samples:
            for objects in sample.values():
                if 'masks' in objects:
                    objects.masks = padded(objects.masks, size)
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
            note_use_of_padding(sample, size)
            sample.set_metainfo({'mixed': True})
        return inputs, data_samples

    def _check(self, sample: DetDataSample) -> None:
        """Refuse a sample that holds more than objects, or masks of an unknown kind."""
        for name, value in sample.items():
            if not isinstance(value, InstanceData):
                raise refusal(self, 'mix', name, value)
            if 'masks' in value and not isinstance(value.masks, BaseInstanceMasks):
                raise refusal(self, 'mix', f'{name}.masks', value.masks)


def _blend_with_previous(images: Tensor, share: float) -> None:
    """Move each image (B, C, H, W) by ``share`` towards the one before it, in place."""
    if images.device.type != 'cpu':
        images.lerp_(torch.cat([images[-1:], images[:-1]]), share)
        return
    # From the last to the first, so that each finds the one before it unchanged. A second batch in
    # memory would take more time than the arithmetic.
    last = images[-1].clone()
    for index in range(len(images) - 1, 0, -1):
        images[index].lerp_(images[index - 1], share)
    images[0].lerp_(last, share)


def _objects_of_both(sample: DetDataSample, previous: DetDataSample) -> dict[str, InstanceData]:
    """Joint objects of two samples, by the name of the kind of object."""
    return {
        name: InstanceData.cat([objects, previous.get(name)])
        for name, objects in sample.items()
        if name in previous
    }
