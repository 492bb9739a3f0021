"""Contrastive denoising queries of DINO (arXiv 2203.03605), as RT-DETR uses them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ...utils.arguments import check_count, check_number
from ..task_modules import Targets
from .basic import inverse_sigmoid
from .boxes import to_centres, to_corners


@dataclass
class DenoisingQueries:
    """Noised objects that enter the decoder beside the matching queries.

    A denoising group holds each object twice: as a positive with little noise and as a negative
    with more. It has m positives, then m negatives, padded; m is the largest number of objects in
    an image of the batch. Query ``g · 2m + j`` is the positive of object j in group g.

    Queries that only fill up a batch (:attr:`DenoisingQueryGenerator.padded`) follow, in groups of
    their own: no other query sees them, and no loss reads them.

    Attributes:
        content: (B, N, D) embeddings of labels, of width D, for N = ``num_groups`` · 2m queries in
            each of B images, and those that fill up.
        reference_logits: (B, N, 4) noised boxes (cx, cy, w, h) before the sigmoid.
        groups: (N,) index of each query's group, not negative.
        num_real: Number of queries, from the first, that stand for objects.
        num_groups: Number of their denoising groups.
    """

    content: Tensor
    reference_logits: Tensor
    groups: Tensor
    num_real: int
    num_groups: int

    def attention_mask(self, num_queries: int) -> Tensor:
        """Mask (N + Q, N + Q) of N denoising and Q matching queries; true forbids attention.

        Matching queries don't see denoising queries. Groups don't see each other.
        """
        groups = F.pad(self.groups, (0, num_queries), value=-1)
        return (groups >= 0) & (groups != groups[:, None])


@MODELS.register_module()
class DenoisingQueryGenerator(nn.Module):
    """Makes denoising queries from the objects of a batch.

    Args:
        num_classes: Number of categories; one more embedding stands for no object.
        embed_dims: Width of the decoder's queries.
        num_queries: Largest number of positives of an image, over all groups. Where an image has
            more objects, there is one group with all of them.
        label_noise: Twice the probability that a random label replaces a label, in [0, 1].
        box_noise: A positive's corners move by up to this share of half the box's width and height.
            A negative's corners move by one to two times as much. Not negative.

    Raises:
        ValueError: A number is out of its range. For no denoising at all give ``denoising=None``.

    Attributes:
        padded: Whether to fill up with queries that change nothing, so that batches have the same
            number: twice ``num_queries`` or, where an image has more objects, a multiple of that.
            For compiled training and CUDA graphs. Objects have the same noise either way.
    """

    padded = False

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        num_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = check_count(self, 'num_queries', num_queries)
        self.label_noise = check_number(self, 'label_noise', label_noise, 0, 1)
        self.box_noise = check_number(self, 'box_noise', box_noise, 0, float('inf'))
        self.embedding = nn.Embedding(num_classes + 1, embed_dims, padding_idx=num_classes)
        nn.init.normal_(self.embedding.weight[:-1])

    @torch.no_grad()
    def _noised(self, labels: Tensor, boxes: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Noised labels (B, G, 2, m) and boxes before the sigmoid (B, G, 2, m, 4), in G groups.

        Index 0 of the third axis has the positives, index 1 the negatives.
        """
        flip = torch.rand(labels.shape, device=labels.device) < self.label_noise * 0.5
        random_labels = torch.randint_like(labels, self.num_classes)
        labels = torch.where(flip & real, random_labels, labels)
        corners = to_corners(boxes)
        reach = boxes[..., 2:].repeat(1, 1, 1, 1, 2) * 0.5 * self.box_noise
        sign = torch.randint_like(corners, 2) * 2 - 1
        part = torch.rand_like(corners)
        part[:, :, 1] += 1
        corners = (corners + sign * part * reach).clamp(0, 1)
        noised = to_centres(corners)
        # Noise may swap opposite sides. Widths and heights stay positive.
        return labels, inverse_sigmoid(noised.abs())

    def forward(self, targets: Targets) -> DenoisingQueries | None:
        """Make denoising queries for the objects of a batch.

        Args:
            targets: The objects of B images.

        Returns:
            The queries; ``None`` where no image holds an object and :attr:`padded` is off.
        """
        max_count = targets.max_count
        if max_count == 0 and not self.padded:
            return None
        num_groups = max(1, self.num_queries // max(1, max_count))
        shape = (-1, num_groups, 2, -1)
        real = targets.labels >= 0
        labels = targets.labels.masked_fill(~real, self.num_classes)
        labels, real = (each[:, None, None].expand(shape) for each in (labels, real))
        boxes = targets.boxes[:, None, None].expand(*shape, -1)
        noised_labels, logits = self._noised(labels, boxes, real)
        content, logits = self.embedding(noised_labels.flatten(1)), logits.flatten(1, 3)
        num_real = content.shape[1]
        if self.padded:
            step = 2 * self.num_queries
            extra = max(1, -(-num_real // step)) * step - num_real
            content, logits = (F.pad(each, (0, 0, 0, extra)) for each in (content, logits))
        index = torch.arange(content.shape[1], device=content.device)
        return DenoisingQueries(
            content=content,
            reference_logits=logits,
            groups=index // max(1, 2 * max_count),
            num_real=num_real,
            num_groups=num_groups,
        )
