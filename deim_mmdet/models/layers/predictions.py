"""What a decoder predicts, as head, criterion and post-processor read it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or in its own type where that has more digits."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass
class Predictions:
    """What L decoder layers predict for the Q queries of B images.

    The first axis is that of the layers; it is 1 where a field belongs to no layer. The third axis
    is that of the queries. A decoder without distributions (RT-DETR) has no optional fields.
    Evaluation leaves out what only losses read.

    Attributes:
        scores: (L, B, Q, C) logits of C categories.
        boxes: (L, B, Q, 4) as (cx, cy, w, h) in [0, 1].
        distributions: (L, B, Q, 4 · bins) logits of the distributions of a box's four sides.
        references: (1, B, Q, 4) reference boxes of all distributions, without gradient.
        initial_scores: (1, B, Q, C) class logits of the traditional head: the one of the first
            layer that predicts boxes without distributions (D-FINE).
        initial_boxes: (1, B, Q, 4) boxes of that head.
        bin_distances: (bins,) table W(n): the distance that each bin n stands for.
        reg_scale: (1,) steepness of these distances.
    """

    scores: Tensor
    boxes: Tensor
    distributions: Tensor | None = None
    references: Tensor | None = None
    initial_scores: Tensor | None = None
    initial_boxes: Tensor | None = None
    bin_distances: Tensor | None = None
    reg_scale: Tensor | None = None

    def in_full_precision(self) -> 'Predictions':
        """The same in float32 at least, which losses need under mixed precision."""
        names = ('scores', 'boxes', 'distributions', 'references', 'initial_scores')
        fields = {name: getattr(self, name) for name in (*names, 'initial_boxes')}
        present = {name: field for name, field in fields.items() if field is not None}
        return replace(self, **{name: full_precision(field) for name, field in present.items()})
