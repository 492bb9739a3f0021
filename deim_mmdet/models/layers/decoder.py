"""What the decoders share: layers and attention."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops import deformable_attention
from ...utils.errors import UserError
from .attention import SelfAttention
from .basic import SwiGLU, bounded, build_activation


class DeformableCrossAttention(nn.Module):
    """Deformable attention (arXiv 2010.04159) without value or output projection, as in D-FINE.

    Args:
        embed_dims: Width of queries and tokens, divisible by ``num_heads``.
        num_heads: Attention heads.
        num_points: Number of sampling points on each level, for each head and query.
        method: 'default' (bilinear) or 'discrete' sampling; see :func:`deformable_attention`. With
            'discrete', offsets get no gradient and stay as they are loaded.
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
        self.sampling_offsets = nn.Linear(embed_dims, total * 2)
        self.attention_weights = nn.Linear(embed_dims, total)
        # On a level with n points, an offset of n is half the side of the reference box. Whole
        # numbers stay exact in a model of half precision.
        steps = torch.tensor([2 * n for n in num_points for _ in range(n)])
        self.register_buffer('steps_per_side', steps[:, None], persistent=False)
        self._init_rays()
        if method == 'discrete':
            self.sampling_offsets.requires_grad_(False)

    def _init_rays(self) -> None:
        """Put the points of head k on a ray at the angle 2πk / ``num_heads``, one step apart."""
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
        """Sample tokens around each query's reference box, and sum them with weights.

        Args:
            query: (B, Q, D) Q queries of width D for each of B images.
            references: (B, Q, 4) reference boxes (cx, cy, w, h) in [0, 1]; float32 at least.
            memory: (B, Σ H_l · W_l, D) tokens of all levels, one level after another.
            spatial_shapes: (H_l, W_l) of each level l.

        Returns:
            (B, Q, D).
        """
        shape = (*query.shape[:2], self.num_heads, len(self.steps_per_side))
        offsets = self.sampling_offsets(query).view(*shape, 2)
        weights = self.attention_weights(query).view(shape)
        centres, sizes = references[:, :, None, None].split(2, dim=-1)
        # In single precision, whatever that of the model, as the published networks have it.
        sides_per_step = self.steps_per_side.reciprocal()
        locations = torch.addcmul(centres, offsets, sizes * sides_per_step)
        attended = deformable_attention(
            memory.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            locations,
            weights.softmax(-1),
            self.num_points,
            self.method,
        )
        # The samples are in the precision of the boxes, also in a model of half precision.
        return attended.to(next(self.parameters()).dtype)


class Gateway(nn.Module):
    """Gated sum of the query and the output of cross-attention, then a norm (D-FINE).

    The gates start as a half each.

    Args:
        embed_dims: Width of queries and outputs.
        norm: Class of the norm.
    """

    def __init__(self, embed_dims: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * embed_dims, 2 * embed_dims)
        self.norm = norm(embed_dims)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, query: Tensor, update: Tensor) -> Tensor:
        """Join queries and the output of cross-attention, (B, Q, D) each, to (B, Q, D)."""
        gates = self.gate(torch.cat([query, update], dim=-1)).sigmoid()
        keep, take = gates.chunk(2, dim=-1)
        return self.norm(keep * query + take * update)


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention and a feed-forward network, each then normalised.

    Args:
        embed_dims: Width of the queries.
        num_heads: Attention heads.
        ffn_channels: Width of the feed-forward network (FFN) before its activation.
        act: Activation of the FFN: a type in mmcv's registry, or ``'SwiGLU'``, which halves the
            width.
        cross_attn: Module of the cross-attention.
        norm: Class of the norms.
        gateway: Whether the output of cross-attention joins the query through a :class:`Gateway`;
            otherwise it is added and the sum normalised.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        ffn_channels: int,
        act: str,
        cross_attn: nn.Module,
        norm: type[nn.Module] = nn.LayerNorm,
        gateway: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(embed_dims, num_heads)
        self.norm1 = norm(embed_dims)
        self.cross_attn = cross_attn
        gated = act == 'SwiGLU'
        self.linear1 = nn.Linear(embed_dims, ffn_channels)
        self.act = SwiGLU() if gated else build_activation(act, of_tokens=True)
        self.linear2 = nn.Linear(ffn_channels // 2 if gated else ffn_channels, embed_dims)
        self.norm3 = norm(embed_dims)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)
            if gated:
                nn.init.zeros_(linear.bias)
        self.gateway = Gateway(embed_dims, norm) if gateway else None
        self.norm2 = None if gateway else norm(embed_dims)

    def _joined(self, query: Tensor, update: Tensor) -> Tensor:
        """The query with the output of cross-attention; all are (B, Q, D)."""
        if self.gateway is None:
            return self.norm2(query + update)
        return self.gateway(query, update)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        attn_mask: Tensor | None,
    ) -> Tensor:
        """Refine queries, given their positions.

        Args:
            query: (B, Q, D) Q queries of width D for each of B images.
            position: (B, Q, D) positions of the queries, made of their reference boxes.
            references: (B, Q, 4) reference boxes (cx, cy, w, h) in [0, 1].
            memory: (B, Σ H_l · W_l, D) tokens of all levels, one level after another.
            spatial_shapes: (H_l, W_l) of each level l.
            attn_mask: (Q, Q) that self-attention adds to its logits; None for no mask.

        Returns:
            (B, Q, D).
        """
        query = self.norm1(query + self.self_attn(query + position, query, attn_mask))
        update = self.cross_attn(query + position, references, memory, spatial_shapes)
        query = self._joined(query, update)
        update = self.linear2(self.act(self.linear1(query)))
        # float16 overflows beyond this bound.
        return self.norm3(bounded(query + update, 65504))


def check_sizes(
    decoder: nn.Module, embed_dims: int, num_heads: int, num_points: Sequence[int], num_levels: int
) -> None:
    """Check that a decoder's sizes fit each other and the feature levels.

    Args:
        decoder: The decoder under construction; its class name heads the message.
        embed_dims: Width of the queries.
        num_heads: Attention heads.
        num_points: Sampling points on each level.
        num_levels: Number of feature levels.

    Raises:
        ValueError: They don't fit; the message names the options.
    """
    name = type(decoder).__name__
    if len(num_points) != num_levels:
        raise UserError(
            f'{name} needs num_points of each level: got {len(num_points)} for {num_levels} '
            'in_channels of the head'
        )
    if embed_dims % num_heads:
        raise UserError(
            f'{name} needs an embed_dims divisible by num_heads, got '
            f'embed_dims={embed_dims}, num_heads={num_heads}'
        )
