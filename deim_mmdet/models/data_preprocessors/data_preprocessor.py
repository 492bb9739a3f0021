"""mmdet's data preprocessor with one copy to the device and fewer passes over the pixels."""

from collections.abc import Sequence

from deim_mmdet.utils.images import are_alike, stacked

import cv2
import numpy as np
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.models.utils import samplelist_boxtype2tensor
from mmdet.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor

from ... import compat
from ...utils.errors import UserError
from ..layers.basic import under_autocast
from .staged_batch_augment import StagedBatchAugment


@MODELS.register_module()
class DenseO2ODataPreprocessor(DetDataPreprocessor):
    """mmdet's ``DetDataPreprocessor``: the same batch, with less work for host and device.

    The data loader stacks the images (``stack_images``); otherwise they are stacked here. One copy
    brings them to the device, as uint8. Batch augments that only pick pixels
    (``DenseO2OMultiScale``) act on these. Then all images together are normalised to floats, and
    mixup mixes them in place. The order makes no difference to the batch, as the other steps treat
    all pixels alike. After ``DenseO2OCopyBlend``, to which sizes matter, augments keep their order.
    A channels-last batch stays channels-last.

    Meanwhile copies of the data samples stay on the host. There batch augments, also those of other
    packages, change boxes without launching a kernel for each.

    In other cases, e.g. with images of different sizes or batch augments of other packages, mmdet's
    own code makes the batch.

    Where the model takes three channels (three means, or an exchange of channels), an array that
    mmdet's ``DetInferencer`` gets becomes what a picture file is loaded as. A grey channel is
    repeated; alpha, a second or fourth channel, is dropped; of 16 bits the upper 8 stay. With
    another number of channels, or ``keep_values``, images are taken with the values they have.

    Args:
        mean: Mean of each channel, of any number of them, or one for all, in the model's order of
            channels. Default None: images are not normalised.
        std: Standard deviation of each channel, or one for all, in the same order.
        args: Further arguments of ``DetDataPreprocessor``.
        samples_on_host: Whether the data samples stay on the host, for detectors that make their
            targets there, such as this package's. Default False: they go to the device after the
            batch augments.
        non_blocking: Whether the host goes on while pinned images are copied. Default True.
        keep_values: Whether images of three channels, too, keep what they have: 16 bits, for which
            mean and std are then meant. Default False.
        kwargs: Further arguments of ``DetDataPreprocessor``.

    Raises:
        ValueError: ``mean`` and ``std`` are for different numbers of channels, or a deviation isn't
            positive. Or ``bgr_to_rgb`` is set, and there aren't three channels.

    Attributes:
        in_autocast_type: Whether images leave in the type of autocast, where it is on. The first
            convolution would convert them, and the trainer would keep them in float32 all the same.
            ``DEIMDetector`` sets it where nothing else sees the images. Default False.

    Example:
        >>> data_preprocessor = dict(
        ...     type='DenseO2ODataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255],
        ...     bgr_to_rgb=True, batch_augments=[dict(type='DenseO2OMultiScale')])
    """

    in_autocast_type = False

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *args,
        samples_on_host: bool = False,
        non_blocking: bool = True,
        keep_values: bool = False,
        **kwargs,
    ) -> None:
        # mmengine 0.10.7 would keep integers, which a device would convert each time.
        mean, std = (
            None if values is None else [float(value) for value in values] for values in (mean, std)
        )
        several = {len(values) for values in (mean, std) if values and len(values) != 1}
        if len(several) > 1:
            raise UserError(
                f'{type(self).__name__}: mean and std must have a number for each channel, or one '
                f'for all: got {mean} and {std}'
            )
        if std and min(std) <= 0:
            raise UserError(f'{type(self).__name__}: std must be positive, got {std}')
        other = mean and std and bool(several - {3})
        # mmengine 0.10.7 takes one number or three.
        given = (mean[:1], std[:1]) if other else (mean, std)
        super().__init__(*given, *args, non_blocking=non_blocking, **kwargs)
        if other:
            for name, values in (('mean', mean), ('std', std)):
                self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
            if compat.exchanges_channels(self):
                raise UserError(
                    f'{type(self).__name__}: bgr_to_rgb is for three channels, mean or std has '
                    f'{several.pop()}: set bgr_to_rgb=False'
                )
        #: Number of channels of the images; None where mean and std don't say it.
        self.channels = 3 if compat.exchanges_channels(self) else next(iter(several), None)
        self.keep_values = keep_values
        self.samples_on_host = samples_on_host
        # Read here: later the host would wait for the device.
        self._subtracts = mean is not None and any(mean)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Make a batch of samples.

        Args:
            data: ``inputs`` are B images (C, H, W) uint8, a stack of them, or other cases as named
                above; ``data_samples`` are B samples or None.
            training: Whether to apply the batch augments.

        Returns:
            ``inputs`` (B, C, H', W') float32, or in autocast's type, normalised, and
            ``data_samples``.

        Raises:
            ValueError: An image has another number of channels than mean and std.
        """
        data = {**data, 'inputs': self._as_loaded(data['inputs'])}
        augments = list(self.batch_augments or ()) if training else []
        if self._stacks_as_bytes(data['inputs'], augments, training):
            inputs, samples = self._batch_of_bytes(data, augments)
        else:
            data = super().forward(data, training)
            inputs, samples = data['inputs'], data['data_samples']
        device = inputs.device.type
        if self.in_autocast_type and under_autocast(device):
            inputs = inputs.to(torch.get_autocast_dtype(device))
        if samples is not None and not self.samples_on_host and self.device.type != 'cpu':
            samples = [sample.to(self.device, non_blocking=True) for sample in samples]
        return {'inputs': inputs, 'data_samples': samples}

    def cast_data(self, data):
        """Put images, or what contains them, on the device; copy data samples on the host."""
        if isinstance(data, BaseDataElement):
            return data.to('cpu')
        return super().cast_data(data)

    def _batch_of_bytes(self, data: dict, augments: list) -> tuple[Tensor, list | None]:
        """Normalised images (B, C, H', W') and samples of a batch that needs no padding."""
        inputs = data['inputs']
        if not isinstance(inputs, Tensor):
            inputs = stacked(inputs)
        elif not inputs.is_contiguous():
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        inputs, samples = self.cast_data((inputs, data.get('data_samples')))
        shape = tuple(inputs.shape[-2:])
        for sample in samples or ():
            sample.set_metainfo({'batch_input_shape': shape, 'pad_shape': shape})
        if samples is not None and self.boxtype2tensor:
            samplelist_boxtype2tensor(samples)
        early, late = _in_order(augments)
        for augment in early:
            inputs, samples = augment(inputs, samples)
        inputs = self._normalised(inputs)
        for augment in late:
            options = {} if augment.picks_pixels else dict(overwrite=True)
            inputs, samples = augment(inputs, samples, **options)
        return inputs, samples

    def _normalises(self) -> bool:
        """Whether the config gives a mean and a standard deviation."""
        return getattr(self, 'mean', None) is not None

    def _as_loaded(self, images: list[Tensor] | Tensor) -> list[Tensor] | Tensor:
        """Images (C, H, W), or a stack of them, in the form of loaded picture files."""
        if self.channels is None:
            return images
        fit = self._in_three_bytes
        if self.channels != 3 or self.keep_values:
            fit = self._with_all_channels
        if isinstance(images, Tensor):
            return fit(images)
        return [fit(image) for image in images]

    def _with_all_channels(self, images: Tensor) -> Tensor:
        """Image or images (..., C, H, W) as they are."""
        if images.shape[-3] != self.channels:
            raise UserError(
                f'the images have {images.shape[-3]} channels, and mean and std of '
                f'model.data_preprocessor have {self.channels}: load such images '
                '(LoadImageChecked(color_type=..., channels=...) in the pipelines), or change '
                'mean, std and model.backbone.in_channels'
            )
        return images

    def _in_three_bytes(self, images: Tensor) -> Tensor:
        """Image or images (..., C, H, W) as (..., 3, H, W), 16 bits as 8."""
        channels = images.shape[-3]
        if channels > 4:
            raise UserError(
                f'{type(self).__name__} takes images of 1 (grey), 3 or 4 (with alpha) channels, '
                f'got {channels}: choose three of them in the pipeline, or give mean and std for '
                'each channel (with bgr_to_rgb=False) and model.backbone.in_channels'
            )
        if images.dtype == torch.uint16:
            # torch 2.13 has no shift for this type.
            images = (images.to(torch.int32) >> 8).to(torch.uint8)
        if channels < 3:
            images = images[..., :1, :, :].expand(*images.shape[:-3], 3, -1, -1)
        return images[..., :3, :, :]

    def _stacks_as_bytes(
        self, images: list[Tensor] | Tensor, augments: list, training: bool
    ) -> bool:
        """Whether the images need no padding and the augments allow another order."""
        if not self._normalises() or not (isinstance(images, Tensor) or are_alike(images)):
            return False
        channels, *sides = images[0].shape
        return (
            images[0].dtype == torch.uint8
            and self.channels in (None, channels)
            and not any(side % self.pad_size_divisor for side in sides)
            and not (training and (self.pad_mask or self.pad_seg))
            and all(isinstance(augment, StagedBatchAugment) for augment in augments)
        )

    def _normalised(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) uint8 as normalised floats, in the model's order of channels."""
        on_cpu = images.device.type == 'cpu'
        return self._by_rows(images) if on_cpu else self._by_batch(images)

    def _by_batch(self, images: Tensor) -> Tensor:
        """Normalise the whole batch at once, with a kernel for each operation."""
        if compat.exchanges_channels(self):
            images = images.flip(1)
        if self._subtracts:
            images = images - self.mean.float()
        return torch.div(images, self.std.float())

    def _by_rows(self, images: Tensor) -> Tensor:
        """Normalise on a CPU, without anything in between that is as large as the batch."""
        channels_last = not images.is_contiguous()
        memory = (images.permute(0, 2, 3, 1) if channels_last else images).numpy()
        channels = images.shape[1]
        mean, std = (
            value.float().flatten().expand(channels).numpy() for value in (self.mean, self.std)
        )
        if channels_last:
            # For a whole row of pixels: numpy is slow on three numbers at a time.
            mean, std = (np.tile(value, memory.shape[2]) for value in (mean, std))
        else:
            mean, std = mean[:, None], std[:, None]
        # numpy asks the system for huge pages. In small pages, getting the memory of a batch takes
        # longer than filling it.
        batch = np.empty(memory.shape, dtype=np.float32)
        for image, floats in zip(memory, batch, strict=True):
            if compat.exchanges_channels(self):
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if channels_last else image[::-1]
            pixels, floats = (array.reshape(len(array), -1) for array in (image, floats))
            if self._subtracts:
                pixels = np.subtract(pixels, mean, out=floats)
            np.divide(pixels, std, out=floats)
        batch = torch.from_numpy(batch)
        return batch.permute(0, 3, 1, 2) if channels_last else batch


def _in_order(augments: list) -> tuple[list, list]:
    """Augments that may act on bytes, and the others, which act on normalised images."""
    early, late = [], []
    for augment in augments:
        first = augment.picks_pixels and not any(other.sees_places for other in late)
        (early if first else late).append(augment)
    return early, late
