"""Query selection: the tokens of the encoder with the best scores become decoder queries."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ...utils.arguments import check_count
from .basic import MLP, init_scores


class SelectedQueries(NamedTuple):
    """The K selected tokens of each of B images; all fields have a gradient.

    Attributes:
        content: (B, K, D) tokens of width D.
        scores: (B, K, C) logits of C categories.
        box_logits: (B, K, 4) boxes (cx, cy, w, h) before the sigmoid, in float32 at least.
    """

    content: Tensor
    scores: Tensor
    box_logits: Tensor


def make_anchors(
    spatial_shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Anchor boxes of N tokens before the sigmoid (N, 4), and which are valid (N, 1).

    A token's anchor (cx, cy, w, h), in [0, 1], is centred on its cell, with w = h = 0.05 · 2^l on
    level l. An anchor with a coordinate outside (0.01, 0.99) is invalid; its logits are +∞.

    Args:
        spatial_shapes: (H_l, W_l) of each level l, finest first.
        device: Where to make the anchors.
        dtype: Type of the anchors.
    """
    anchors = []
    for level, (height, width) in enumerate(spatial_shapes):
        y, x = torch.meshgrid(
            (torch.arange(height, device=device, dtype=dtype) + 0.5) / height,
            (torch.arange(width, device=device, dtype=dtype) + 0.5) / width,
            indexing='ij',
        )
        size = torch.full_like(x, 0.05 * 2.0**level)
        anchors.append(torch.stack([x, y, size, size], dim=-1).flatten(0, 1))
    boxes = torch.cat(anchors)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)
    return torch.logit(boxes).masked_fill(~valid, torch.inf), valid


@MODELS.register_module()
class QuerySelection(nn.Module):
    """Select the tokens with the largest class score (RT-DETR, arXiv 2304.08069, section 4.3).

    Args:
        num_classes: Number of categories, without background.
        embed_dims: Width of tokens and queries.
        num_queries: Queries of an image; fewer where an input has fewer tokens.
        act: Activation of the box MLP: SiLU in DEIM, ReLU in D-FINE and RT-DETR.
        project: Whether tokens are projected and normalised first; not in DEIMv2 and ECDet.

    Raises:
        ValueError: ``num_queries`` is no positive integer.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        num_queries: int = 300,
        act: str = 'SiLU',
        project: bool = True,
    ) -> None:
        super().__init__()
        self.num_queries = check_count(self, 'num_queries', num_queries)
        self.proj = nn.Linear(embed_dims, embed_dims) if project else nn.Identity()
        self.norm = nn.LayerNorm(embed_dims) if project else nn.Identity()
        self.score = init_scores(nn.Linear(embed_dims, num_classes))
        self.box = MLP([embed_dims] * 3 + [4], act).zero_last()
        if project:
            nn.init.xavier_uniform_(self.proj.weight)
        self._anchors: dict[tuple, tuple[Tensor, Tensor]] = {}

    def _cached_anchors(
        self, memory: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Anchors in float32 at least, and which are valid as numbers of the tokens' type."""
        key = (tuple(spatial_shapes), memory.device, memory.dtype)
        if key not in self._anchors:
            dtype = torch.promote_types(memory.dtype, torch.float32)
            anchors, valid = make_anchors(spatial_shapes, memory.device, dtype)
            self._anchors[key] = anchors, valid.to(memory.dtype)
        return self._anchors[key]

    def forward(self, memory: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> SelectedQueries:
        """Select tokens of B images.

        Args:
            memory: (B, Σ H_l · W_l, D) tokens of all levels, one level after another.
            spatial_shapes: (H_l, W_l) of each level l.
        """
        anchors, valid = self._cached_anchors(memory, spatial_shapes)
        # Not under no_grad: older torch (the package takes 2.6 on) lets autocast keep copies of the
        # weights that have no gradient.
        tokens, scores = self._judge(valid * memory.detach())
        count = min(self.num_queries, len(anchors))
        chosen = scores.detach().amax(-1).topk(count, dim=-1).indices[..., None]
        if torch.is_grad_enabled():
            # Only chosen tokens have a gradient: a graph of them alone is enough.
            content, scores = self._judge(valid[chosen[..., 0]] * _rows(memory, chosen))
        else:
            content, scores = _rows(tokens, chosen), _rows(scores, chosen)
        return SelectedQueries(content, scores, self.box(content) + anchors[chosen[..., 0]])

    def _judge(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, D) as content of queries, and their class logits (B, N, C)."""
        tokens = self.norm(self.proj(memory))
        return tokens, self.score(tokens)


def _rows(tensor: Tensor, index: Tensor) -> Tensor:
    """Rows (B, K, n) of a tensor (B, N, n) at an index (B, K, 1)."""
    return tensor.gather(1, index.expand(-1, -1, tensor.shape[-1]))
