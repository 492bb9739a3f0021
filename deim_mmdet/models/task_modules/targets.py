"""Objects of a batch, padded to one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from torch import Tensor


@dataclass
class Targets:
    """Objects of B images, padded to the largest number m of objects.

    They are made once for a batch, on the host. Denoising, matching and every loss term read them.

    Attributes:
        labels: (B, m) int64, padded with -1.
        boxes: (B, m, 4) as (cx, cy, w, h) in [0, 1], padded with 0.
        counts: Number of objects of each image.
    """

    labels: Tensor
    boxes: Tensor
    counts: list[int]

    @classmethod
    def from_lists(cls, labels: Sequence[Tensor], boxes: Sequence[Tensor]) -> 'Targets':
        """Make targets of the labels (n,) and boxes (n, 4) of each image's n objects."""
        counts = [len(image_labels) for image_labels in labels]
        return cls._padded(torch.cat(list(labels)), torch.cat(list(boxes)), counts)

    @classmethod
    def _padded(cls, labels: Tensor, boxes: Tensor, counts: list[int]) -> 'Targets':
        """Make targets of the labels (N,) and boxes (N, 4) of all images, one after another."""
        shape = len(counts), max(counts)
        real = np.arange(shape[1]) < np.array(counts)[:, None]
        place = torch.from_numpy(np.flatnonzero(real)).to(labels.device)
        return cls(
            labels.new_full((real.size,), -1).index_copy_(0, place, labels).view(shape),
            boxes.new_zeros(real.size, 4).index_copy_(0, place, boxes).view(*shape, 4),
            counts,
        )

    @classmethod
    def from_samples(cls, samples: Sequence[DetDataSample], device: torch.device) -> 'Targets':
        """Make targets of data samples, on ``device``.

        Args:
            samples: Samples whose ``gt_instances`` have ``labels`` (n,) and ``bboxes`` (n, 4) as
                (x1, y1, x2, y2) in pixels of the input; fastest where these are on the host.
            device: Where the model is.
        """
        objects = [sample.gt_instances for sample in samples]
        counts = [len(each.labels) for each in objects]
        boxes = torch.cat([each.bboxes for each in objects])
        # Width and height of the input, for each box.
        sizes = np.repeat([input_shape(sample)[::-1] * 2 for sample in samples], counts, axis=0)
        boxes = bbox_xyxy_to_cxcywh(boxes / torch.from_numpy(sizes).to(boxes))
        return cls._padded(torch.cat([each.labels for each in objects]), boxes, counts).to(device)

    def to(self, device: torch.device) -> 'Targets':
        """The same on another device, by one copy that the host doesn't wait for."""
        if self.labels.device == device:
            return self
        # Labels are far below 2^24, up to which float32 holds all whole numbers.
        packed = torch.cat([self.boxes, self.labels[..., None].to(self.boxes.dtype)], dim=-1)
        if device.type == 'cuda':
            packed = packed.pin_memory()
        packed = packed.to(device, non_blocking=True)
        return Targets(packed[..., 4].to(torch.int64), packed[..., :4], self.counts)

    def of_images(self, images: slice) -> 'Targets':
        """Targets of some images, padded to the largest number of objects among these."""
        counts = self.counts[images]
        most = max(counts, default=0)
        return Targets(self.labels[images, :most], self.boxes[images, :most], counts)

    @property
    def total(self) -> int:
        """Number of objects of the batch."""
        return sum(self.counts)

    @property
    def max_count(self) -> int:
        """The largest number of objects in an image."""
        return self.labels.shape[1]


def input_shape(sample: DetDataSample) -> tuple[int, int]:
    """Height and width that the feature maps span: the batch's, padding included."""
    return tuple(sample.metainfo.get('batch_input_shape', sample.img_shape))[:2]
