"""What the decoders of D-FINE and RT-DETR share: layers, attention, predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ...ops import deformable_attention
from .basic import build_activation
from .linear import Linear, SelfAttention


@dataclass
class DecoderPredictions:
    """What L decoder layers predict for Q queries, layers first.

    Attributes:
        scores: (L, B, Q, C) class logits.
        boxes: (L, B, Q, 4) as (cx, cy, w, h) in [0, 1].
    """

    scores: Tensor
    boxes: Tensor

    def split(self, num_first: int) -> tuple[Self, Self]:
        """Those of the first ``num_first`` queries, and those of the others."""
        fields = [
            tensor.split([num_first, tensor.shape[-2] - num_first], dim=-2)
            for tensor in vars(self).values()
        ]
        first, second = zip(*fields, strict=True)
        return type(self)(*first), type(self)(*second)

    def in_full_precision(self) -> Self:
        """The same in float32 at least, as losses need them under mixed precision."""
        return type(self)(*map(full_precision, vars(self).values()))


def full_precision(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, unless it is of a type with more digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class DeformableCrossAttention(nn.Module):
    """Deformable attention without value or output projection.

    Args:
        embed_dims: D.
        num_heads: Attention heads.
        num_points: n_l of each level.
        method: 'default' (bilinear) or 'discrete' sampling; see :func:`deformable_attention`. The
            offsets of the latter get no gradient and stay as they are loaded.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_points: Sequence[int],
        method: str = 'default',
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_points = tuple(num_points)
        self.method = method
        total = num_heads * sum(num_points)
        self.sampling_offsets = Linear(embed_dims, total * 2)
        self.attention_weights = Linear(embed_dims, total)
        # The offsets n_l of a level's n_l points span half the reference box.
        scales = torch.tensor([0.5 / n for n in num_points for _ in range(n)])
        self.register_buffer('point_scale', scales[:, None], persistent=False)
        self._init_rays()
        if method == 'discrete':
            self.sampling_offsets.requires_grad_(False)

    def _init_rays(self) -> None:
        """Head k starts with points on the ray at the angle 2πk / heads, one step apart."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        steps = torch.cat([torch.arange(1, n + 1) for n in self.num_points])
        offsets = rays[:, None] * steps[None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for parameter in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(parameter)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Query (B, Q, D) at boxes (B, Q, 4), memory (B, Σ H_l W_l, D) to (B, Q, D)."""
        shape = (*query.shape[:2], self.num_heads, len(self.point_scale))
        offsets = self.sampling_offsets(query).view(*shape, 2)
        weights = self.attention_weights(query).view(shape)
        centres, sizes = references[:, :, None, None].split(2, dim=-1)
        locations = centres + offsets * self.point_scale * sizes
        return deformable_attention(
            memory.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            locations,
            weights.softmax(-1),
            self.num_points,
            self.method,
        )


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, FFN; all post-norm.

    What cross-attention brings is joined to the query by :meth:`join`, which subclasses define.

    Args:
        embed_dims: D.
        num_heads: Attention heads.
        ffn_channels: Width of the FFN.
        act: Its activation.
        cross_attn: The cross-attention.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, ffn_channels: int, act: str, cross_attn: nn.Module
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(embed_dims, num_heads)
        self.norm1 = nn.LayerNorm(embed_dims)
        self.cross_attn = cross_attn
        self.linear1 = Linear(embed_dims, ffn_channels)
        self.act = build_activation(act)
        self.linear2 = Linear(ffn_channels, embed_dims)
        self.norm3 = nn.LayerNorm(embed_dims)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def join(self, query: Tensor, update: Tensor) -> Tensor:
        """Query and the output of cross-attention, (B, Q, D) each, to (B, Q, D)."""
        raise NotImplementedError

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        attn_mask: Tensor | None,
    ) -> Tensor:
        query = self.norm1(query + self.self_attn(query + position, query, attn_mask))
        update = self.cross_attn(query + position, references, memory, spatial_shapes)
        query = self.join(query, update)
        update = self.linear2(self.act(self.linear1(query)))
        # Half precision overflows beyond this bound.
        return self.norm3((query + update).clamp(-65504, 65504))
