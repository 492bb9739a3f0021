"""Objects of a batch, padded to one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass
class Targets:
    """Objects of B images, padded to the largest number m of objects.

    Attributes:
        labels: (B, m) int64, padded with 0.
        boxes: (B, m, 4) as (cx, cy, w, h) in [0, 1], padded with 0.
        counts: Number of objects of each image.
    """

    labels: Tensor
    boxes: Tensor
    counts: list[int]

    @classmethod
    def from_lists(cls, labels: Sequence[Tensor], boxes: Sequence[Tensor]) -> 'Targets':
        """From labels (n_b,) and boxes (n_b, 4) of each image."""
        return cls(
            pad_sequence(list(labels), batch_first=True),
            pad_sequence(list(boxes), batch_first=True),
            [len(image_labels) for image_labels in labels],
        )

    def of_images(self, images: slice) -> 'Targets':
        """Those of some images, padded to the largest number among these."""
        counts = self.counts[images]
        most = max(counts, default=0)
        return Targets(self.labels[images, :most], self.boxes[images, :most], counts)

    @property
    def total(self) -> int:
        """Number of objects of the batch."""
        return sum(self.counts)

    @property
    def max_count(self) -> int:
        """m."""
        return self.labels.shape[1]

    def real_pairs(self) -> tuple[Tensor, Tensor]:
        """Image and object index, each (total,), of all objects."""
        counts = torch.tensor(self.counts, device=self.labels.device)
        objects = torch.arange(self.max_count, device=self.labels.device)
        return (objects < counts[:, None]).nonzero(as_tuple=True)
