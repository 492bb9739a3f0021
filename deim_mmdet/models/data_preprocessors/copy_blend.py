"""Copy-blend of Dense O2O, on batches."""

from collections.abc import Sequence

from deim_mmdet.utils.arguments import check_count, check_number, check_range
from deim_mmdet.utils.stage import Stage

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes, get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from ...utils.errors import UserError
from .staged_batch_augment import StagedBatchAugment, note_use_of_padding, refusal

STAGES = {stage.label: stage for stage in Stage}


@MODELS.register_module()
class DenseO2OCopyBlend(StagedBatchAugment):
    """Blend objects of a batch into its images, at random places (DEIMv2, arXiv 2509.20787).

    Each image gets ``num_objects`` of the batch's objects (all, where there are fewer), which may
    be its own. They are drawn anew for each image, none twice. A copy keeps its size; where it
    stands is drawn uniformly among the places within the image. The context around it is blended
    too, as far as there is some at both places. Its box has no context.

    It leaves batches alone that :class:`DenseO2OMixUp` has mixed, so it stands after mixup in
    ``batch_augments``. It needs boxes, labels and other single values of objects.

    Args:
        prob: Probability for a batch that isn't mixed. Default 0.5.
        ratio: Range of the image's own share, drawn uniformly for a batch. Default (0.45, 0.55).
        num_objects: Number of objects that are copied into an image. Default 3.
        min_area: Least area of an object that is copied, in square pixels. Default 100.
        context: Range of the width of the context on each side, drawn uniformly for a copy, as a
            share of the object's width and height. Default (0.1, 0.25).
        stages: Stages in which it acts. Default ``('dense', 'flat')``.

    Raises:
        ValueError: An argument is out of range. Or samples have what isn't copied with an object,
            such as masks or a semantic map.

    Example:
        >>> data_preprocessor = dict(
        ...     type='DenseO2ODataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255],
        ...     bgr_to_rgb=True, batch_augments=[
        ...         dict(type='DenseO2OMixUp'), dict(type='DenseO2OCopyBlend'),
        ...         dict(type='DenseO2OMultiScale')])
    """

    sees_places = True

    def __init__(
        self,
        prob: float = 0.5,
        ratio: Sequence[float] = (0.45, 0.55),
        num_objects: int = 3,
        min_area: float = 100.0,
        context: Sequence[float] = (0.1, 0.25),
        stages: Sequence[str] = ('dense', 'flat'),
    ) -> None:
        super().__init__()
        self.prob = check_number(self, 'prob', prob, 0, 1)
        self.ratio = check_range(self, 'ratio', ratio, 0, 1)
        self.num_objects = check_count(self, 'num_objects', num_objects)
        self.min_area = check_number(self, 'min_area', min_area, 0, float('inf'))
        self.context = check_range(self, 'context', context, 0)
        if unknown := set(stages) - STAGES.keys():
            raise UserError(
                f'{type(self).__name__}: stages must be among {[*STAGES]}, got {sorted(unknown)}'
            )
        self.stages = tuple(stages)

    def forward(
        self, inputs: Tensor, data_samples: list[DetDataSample], overwrite: bool = False
    ) -> tuple[Tensor, list[DetDataSample]]:
        """Blend objects into images.

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
        if (
            self.stage.label not in self.stages
            or any(sample.get('mixed') for sample in data_samples)
            or np.random.rand() >= self.prob
        ):
            return inputs, data_samples
        objects = InstanceData.cat([sample.gt_instances for sample in data_samples])
        counts = [len(sample.gt_instances) for sample in data_samples]
        owners = np.repeat(np.arange(len(counts)), counts)
        height, width = inputs.shape[-2:]
        # On the host already, but for mmdet's own preprocessor on a GPU.
        boxes = get_box_tensor(objects.bboxes).cpu().numpy().clip(0, [width, height] * 2)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        pool = np.flatnonzero((areas >= self.min_area) & (areas > 0))
        if not len(pool):
            return inputs, data_samples
        # Whole pixels that hold the box: (first, behind the last) of columns and of rows.
        hulls = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], 1).astype(int)
        share = np.random.uniform(*self.ratio)
        count = min(self.num_objects, len(pool))
        chosen = np.concatenate([np.random.permutation(pool)[:count] for _ in data_samples])
        sources, shifts = self._draw_places(hulls[chosen], np.array([width, height]))
        added = objects[torch.from_numpy(chosen).to(objects.labels.device)]
        get_box_tensor(added.bboxes).copy_(torch.from_numpy(boxes[chosen] + shifts))
        for image, sample in enumerate(data_samples):
            own = added[image * count : (image + 1) * count]
            sample.gt_instances = InstanceData.cat([sample.gt_instances, own])
            # A copy may reach into the padding.
            note_use_of_padding(sample, (height, width))
        parts = np.repeat(np.arange(len(inputs)), count), sources + shifts, owners[chosen], sources
        copies = list(zip(*(part.tolist() for part in parts), strict=True))
        return _blended(inputs if overwrite else inputs.clone(), copies, 1 - share), data_samples

    def _draw_places(self, hulls: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw the context of objects and where they are copied to.

        Args:
            hulls: (n, 4) whole pixels x1, y1, x2, y2 that hold the objects' boxes.
            size: (2,) width and height of the images.

        Returns:
            (n, 4) hulls with the context that is copied too, and (n, 4) distances of the copies
            from them.
        """
        low, high = hulls[:, :2], hulls[:, 2:]
        shifts = np.random.randint(0, size - (high - low) + 1) - low
        share = np.random.uniform(*self.context, (len(hulls), 1))
        margin = ((high - low) * share).astype(int)
        before = np.minimum(margin, np.minimum(low, low + shifts))
        after = np.minimum(margin, np.minimum(size - high, size - high - shifts))
        return np.concatenate([low - before, high + after], 1), np.tile(shifts, 2)

    def _check(self, sample: DetDataSample) -> None:
        """Refuse a sample with what isn't copied together with an object."""
        for name, value in sample.items():
            if not isinstance(value, InstanceData):
                raise refusal(self, 'copy', name, value)
        for name, value in sample.gt_instances.items():
            boxes = isinstance(value, HorizontalBoxes) or (
                name == 'bboxes' and isinstance(value, Tensor) and value.shape[1:] == (4,)
            )
            if not boxes and not (isinstance(value, Tensor) and value.ndim == 1):
                raise refusal(self, 'copy', f'gt_instances.{name}', value)


def _blended(
    images: Tensor, copies: Sequence[tuple[int, list[int], int, list[int]]], share: float
) -> Tensor:
    """Move parts of images (B, C, H, W) by ``share`` towards other parts, in place.

    Args:
        images: The images. All parts that are copied are those of the images as they come in.
        copies: Image and (x1, y1, x2, y2) of what changes, image and (x1, y1, x2, y2) of the copy.
        share: Weight of the copy.
    """

    def part(image: int, place: list[int]) -> Tensor:
        x1, y1, x2, y2 = place
        return images[image, :, y1:y2, x1:x2]

    patches = [part(image, place).clone() for _, _, image, place in copies]
    for (image, place, _, _), patch in zip(copies, patches, strict=True):
        part(image, place).lerp_(patch, share)
    return images
