"""Detections from what a head predicts, for evaluation and export alike."""

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ...utils.arguments import check_count
from ..layers.boxes import to_corners


@MODELS.register_module()
class TopKPostprocess(nn.Module):
    """The best (query, class) pairs of each image; a query may give several.

    Args:
        max_per_img: Most detections of an image.
        clip: Whether boxes end at the border of the image, as those of mmdet's heads do. The
            published models let them go beyond it, by a little.

    Raises:
        ValueError: ``max_per_img`` is no positive integer.
    """

    def __init__(self, max_per_img: int = 300, clip: bool = False) -> None:
        super().__init__()
        self.max_per_img = check_count(self, 'max_per_img', max_per_img)
        self.clip = clip

    def forward(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detections of a batch, N of each image.

        Args:
            logits: (B, Q, C) class logits.
            boxes: (B, Q, 4) as (cx, cy, w, h) in [0, 1].
            sizes: (B, 2) width and height of each image, in whose pixels boxes are returned.

        Returns:
            Labels (B, N) int64, boxes (B, N, 4) as (x1, y1, x2, y2) in pixels and scores (B, N) in
            [0, 1], best first.
        """
        # Exporters that trace take plain numbers as constants.
        num_queries, num_classes = (int(size) for size in logits.shape[1:])
        count = min(self.max_per_img, num_queries * num_classes)
        top, index = logits.flatten(1).topk(count, dim=1)
        # Truncated, which runtimes can do for integers; indices aren't negative.
        query = torch.div(index, num_classes, rounding_mode='trunc')
        boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
        corners = to_corners(boxes)
        if self.clip:
            corners = corners.clamp(0, 1)
        pixels = corners * sizes.to(boxes.dtype).repeat(1, 2)[:, None]
        return index - query * num_classes, pixels, top.sigmoid()
