"""Contrastive denoising queries of DINO (arXiv 2203.03605), as RT-DETR uses them."""

from dataclasses import dataclass

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..task_modules import Targets
from .basic import inverse_sigmoid
from .boxes import to_centres, to_corners


@dataclass
class DenoisingQueries:
    """Noised objects that enter the decoder beside the matching queries.

    A denoising group holds each object twice: as a positive with little noise and as a negative
    with more. It has m positives, then m negatives, padded; m is the largest number of objects in
    an image of the batch. Query ``g · 2m + j`` is the positive of object j in group g.

    Attributes:
        content: (B, N, D) embeddings of labels, of width D, for N = ``num_groups`` · 2m queries in
            each of B images.
        reference_logits: (B, N, 4) noised boxes (cx, cy, w, h) before the sigmoid.
        num_groups: Number of denoising groups.
        max_count: The largest number m of objects in an image.
    """

    content: Tensor
    reference_logits: Tensor
    num_groups: int
    max_count: int

    def attention_mask(self, num_queries: int) -> Tensor:
        """Mask (N + Q, N + Q) of N denoising and Q matching queries; true forbids attention.

        Matching queries don't see denoising queries. Groups don't see each other.
        """
        size = 2 * self.max_count
        count = self.num_groups * size
        group = torch.arange(count + num_queries, device=self.content.device) // size
        is_denoising = torch.arange(count + num_queries, device=self.content.device) < count
        return is_denoising & (~is_denoising[:, None] | (group[:, None] != group))


@MODELS.register_module()
class DenoisingQueryGenerator(nn.Module):
    """Makes denoising queries from the objects of a batch.

    Args:
        num_classes: Number of categories; one more embedding stands for no object.
        embed_dims: Width of the decoder.
        num_queries: Most positives of an image, over all groups; one group is always made.
        label_noise: Twice the probability that a random label replaces a label.
        box_noise: A positive's corners move by up to this share of half the box's width and height.
            A negative's corners move by one to two times as much.
    """

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
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.box_noise = box_noise
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
        """Denoising queries for the objects of a batch; ``None`` where no image holds an object."""
        max_count = targets.max_count
        if max_count == 0:
            return None
        num_groups = max(1, self.num_queries // max_count)
        shape = (-1, num_groups, 2, -1)
        real = targets.labels >= 0
        labels = targets.labels.masked_fill(~real, self.num_classes)
        labels, real = (each[:, None, None].expand(shape) for each in (labels, real))
        boxes = targets.boxes[:, None, None].expand(*shape, -1)
        noised_labels, logits = self._noised(labels, boxes, real)
        return DenoisingQueries(
            content=self.embedding(noised_labels.flatten(1)),
            reference_logits=logits.flatten(1, 3),
            num_groups=num_groups,
            max_count=max_count,
        )
