"""Multi-scale training of Dense O2O, on batches."""

from collections.abc import Sequence

from deim_mmdet.utils.arguments import check_count
from deim_mmdet.utils.stage import Stage

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes
from mmdet.structures.mask import BaseInstanceMasks
from mmengine.dist import sync_random_seed
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F

from ...utils.errors import UserError
from .staged_batch_augment import StagedBatchAugment, padded, refusal

SIZE_STEP = 32


@MODELS.register_module()
class DenseO2OMultiScale(StagedBatchAugment):
    """Resize a whole batch to a random size, in all stages but the one without augmentation.

    Sizes go from 0.75 to 1.25 times the base size in steps of 32 (for 640: 480, 512, ..., 800). The
    base size is ``base_size_repeat`` times in the draw. Each side of the input is scaled by size /
    ``base_size`` and rounded to a multiple of 32; inputs need not be square.

    All processes of a training draw the same size in a step, as they wait for the slowest.
    ``DerivedSeedHook`` sets the seed of each step. Without it the processes agree on one seed at
    their first draw.

    Boxes, masks, key points and semantic maps are resized too.

    Args:
        base_size: Size of the input, divisible by 32. Default None: the longer side of each batch.
        base_size_repeat: Weight of the base size in the draw; None for a fixed size. Default 4.

    Raises:
        ValueError: ``base_size`` is not a positive multiple of 32, or ``base_size_repeat`` not a
            positive integer. Or samples have another field that may depend on the size.

    Example:
        >>> data_preprocessor = dict(
        ...     type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True,
        ...     batch_augments=[dict(type='DenseO2OMultiScale')])
    """

    picks_pixels = True

    def __init__(self, base_size: int | None = None, base_size_repeat: int | None = 4) -> None:
        super().__init__()
        if base_size is not None and check_count(self, 'base_size', base_size) % SIZE_STEP:
            raise UserError(
                f'{type(self).__name__}: base_size must be divisible by {SIZE_STEP}, '
                f'got {base_size}'
            )
        if base_size_repeat is not None:
            check_count(self, 'base_size_repeat', base_size_repeat)
        self.base_size = base_size
        self.base_size_repeat = base_size_repeat
        self._generator: np.random.Generator | None = None

    def set_step_seed(self, seed: int) -> None:
        """Let the next draws follow from ``seed``, the same in all processes."""
        self._generator = np.random.default_rng(seed)

    def draw_size(self, base_size: int) -> int:
        """Draw a size in pixels, given the base size; the same in all processes."""
        if self._generator is None:
            self.set_step_seed(sync_random_seed())
        sizes = training_sizes(base_size, self.base_size_repeat)
        # Not an index: processes whose base sizes differ have another number of sizes.
        return sizes[int(self._generator.random() * len(sizes))]

    def forward(
        self, inputs: Tensor, data_samples: list[DetDataSample]
    ) -> tuple[Tensor, list[DetDataSample]]:
        """Resize images and objects.

        Args:
            inputs: Images (B, C, H, W) of any number of channels, float or uint8.
            data_samples: B samples with boxes in pixels of the images.

        Returns:
            Images (B, C, H', W') and the samples, changed in place: objects, semantic maps,
            ``img_shape``, ``pad_shape`` and ``batch_input_shape``.
        """
        if self.stage is Stage.NO_AUG:
            return inputs, data_samples
        old = tuple(inputs.shape[-2:])
        base_size = self.base_size or max(old)
        scale = self.draw_size(base_size) / base_size
        new = tuple(max(SIZE_STEP, round(side * scale / SIZE_STEP) * SIZE_STEP) for side in old)
        if new == old:
            return inputs, data_samples
        inputs = _resize_nearest(inputs, new)
        y_scale, x_scale = new[0] / old[0], new[1] / old[1]
        _resize_boxes(data_samples, (x_scale, y_scale))
        for sample in data_samples:
            for name, value in sample.items():
                if isinstance(value, InstanceData):
                    self._resize_objects(name, value, old, new)
                elif isinstance(value, PixelData):
                    setattr(sample, name, self._resized_maps(name, value, old, new))
                else:
                    raise refusal(self, 'resize', name, value)
            shapes = {
                name: (round(sample.get(name)[0] * y_scale), round(sample.get(name)[1] * x_scale))
                for name in ('img_shape', 'pad_shape')
                if name in sample
            }
            sample.set_metainfo({**shapes, 'batch_input_shape': new})
        return inputs, data_samples

    def _resize_objects(
        self, name: str, objects: InstanceData, old: tuple[int, int], new: tuple[int, int]
    ) -> None:
        """Resize the fields of ``objects``, in place, except boxes in tensors.

        Args:
            name: Name of the objects in the sample, for messages.
            objects: Objects of a sample.
            old: (height, width) of the batch before.
            new: (height, width) of the batch now.
        """
        scale = (new[1] / old[1], new[0] / old[0])
        for field, value in objects.items():
            last = value.shape[-1] if isinstance(value, Tensor) and value.ndim else None
            if isinstance(value, BaseBoxes):
                value.rescale_(scale)
            elif isinstance(value, BaseInstanceMasks):
                # Padded first: rounding the size of a part would change the scale.
                objects.set_field(padded(value, old).resize(new), field)
            elif field == 'keypoints' and last in (2, 3):
                # The third number of a key point is its visibility.
                objects.keypoints = _scaled(value, scale)
            elif not (_is_box_tensor(field, value) or _is_sizeless(field, value)):
                raise refusal(self, 'resize', f'{name}.{field}', value)

    def _resized_maps(
        self, name: str, maps: PixelData, old: tuple[int, int], new: tuple[int, int]
    ) -> PixelData:
        """Resize maps by the nearest pixel; arguments as of :meth:`_resize_objects`."""
        resized = PixelData(metainfo=maps.metainfo)
        for field, value in maps.items():
            if not isinstance(value, Tensor):
                raise refusal(self, 'resize', f'{name}.{field}', value)
            # A map may be smaller than the batch.
            rows, columns = (
                (
                    torch.arange(round(side * (after / before)), device=value.device)
                    * before
                    // after
                ).clamp(max=side - 1)
                for side, before, after in zip(value.shape[-2:], old, new, strict=True)
            )
            resized.set_field(value[..., rows[:, None], columns], field)
        return resized


def training_sizes(base_size: int, base_size_repeat: int | None) -> list[int]:
    """Sizes of the multi-scale draw in pixels, in ascending order.

    They are the multiples of 32 from 0.75 to 1.25 times the base size, the ends rounded down.

    Args:
        base_size: Size of the input in pixels.
        base_size_repeat: How often the base size is in the list; None for the base size alone.
    """
    if base_size_repeat is None:
        return [base_size]
    lowest, highest = (int(base_size * factor) // SIZE_STEP * SIZE_STEP for factor in (0.75, 1.25))
    others = [s for s in range(lowest, highest + 1, SIZE_STEP) if s != base_size]
    return sorted([*others, *[base_size] * base_size_repeat])


def _resize_nearest(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (B, C, H, W) to ``size`` (height, width), by the nearest pixel as published."""
    if images.dtype != torch.uint8 or images.device.type != 'cpu':
        return F.interpolate(images, size=size, mode='nearest')
    # OpenCV gives the same pixels, but for rounding errors of torch, in a third of the time. It
    # takes planes, or pixels with all their channels.
    by_plane = images.is_contiguous()
    sources = images.flatten(0, 1) if by_plane else images.permute(0, 2, 3, 1)
    resized = torch.empty((len(sources), *size, *sources.shape[3:]), dtype=torch.uint8)
    for source, out in zip(sources.numpy(), resized.numpy(), strict=True):
        cv2.resize(source, size[::-1], dst=out, interpolation=cv2.INTER_NEAREST)
    if by_plane:
        return resized.unflatten(0, images.shape[:2])
    return resized.permute(0, 3, 1, 2)


def _resize_boxes(samples: Sequence[DetDataSample], scale: tuple[float, float]) -> None:
    """Multiply the boxes that are plain tensors by (x, y) ``scale``, those of all samples at once.

    One by one, a batch of small tensors takes the host as long as a part of the model.
    """
    holders = [
        objects
        for sample in samples
        for objects in sample.values()
        if isinstance(objects, InstanceData) and _is_box_tensor('bboxes', objects.get('bboxes'))
    ]
    if holders:
        boxes = [objects.bboxes for objects in holders]
        scaled = _scaled(torch.cat(boxes).unflatten(-1, (2, 2)), scale).flatten(-2)
        for objects, part in zip(holders, scaled.split([len(each) for each in boxes]), strict=True):
            objects.bboxes = part


def _is_box_tensor(field: str, value: object) -> bool:
    return field == 'bboxes' and isinstance(value, Tensor) and value.shape[1:] == (4,)


def _scaled(points: Tensor, scale: tuple[float, float]) -> Tensor:
    """Points (..., n) as floats, their first two numbers, x and y, times ``scale``."""
    coordinates = (points[..., axis, None] * factor for axis, factor in enumerate(scale))
    return torch.cat([*coordinates, points[..., 2:]], dim=-1)


def _is_sizeless(field: str, value: object) -> bool:
    """Whether a field of objects stays as it is at another size of the image.

    A single value of each object, such as its label, does. An area doesn't.
    """
    return field == 'keypoints_visible' or (
        isinstance(value, Tensor) and value.ndim == 1 and 'area' not in field
    )
