"""The decoder of D-FINE (arXiv 2410.13842): boxes refined as distributions, layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...ops import deformable_attention
from .basic import MLP, build_activation, inverse_sigmoid
from .distribution import distances_to_boxes, expected_distances, weighting_function


@dataclass
class DecoderPredictions:
    """What L decoder layers predict for Q queries, layers first.

    Attributes:
        scores: (L, B, Q, C) class logits.
        boxes: (L, B, Q, 4) as (cx, cy, w, h) in [0, 1].
        distributions: (L, B, Q, 4 · bins) logits of the sides' distributions.
        references: (B, Q, 4) reference boxes of all distributions, without gradient.
        initial_scores: (B, Q, C) class logits of the traditional head of the first layer.
        initial_boxes: (B, Q, 4) boxes of that head.
    """

    scores: Tensor
    boxes: Tensor
    distributions: Tensor
    references: Tensor
    initial_scores: Tensor
    initial_boxes: Tensor

    def split(self, num_first: int) -> tuple['DecoderPredictions', 'DecoderPredictions']:
        """Those of the first ``num_first`` queries, and those of the others."""
        fields = [
            tensor.split([num_first, tensor.shape[-2] - num_first], dim=-2)
            for tensor in vars(self).values()
        ]
        first, second = zip(*fields, strict=True)
        return DecoderPredictions(*first), DecoderPredictions(*second)

    def in_full_precision(self) -> 'DecoderPredictions':
        """The same in float32 at least, as losses need them under mixed precision."""
        return DecoderPredictions(*map(full_precision, vars(self).values()))


def full_precision(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, unless it is of a type with more digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class DeformableCrossAttention(nn.Module):
    """Deformable attention without value or output projection.

    Args:
        embed_dims: D.
        num_heads: Attention heads.
        num_points: n_l of each level.
        offset_scale: Offsets of ±1 span this share of the reference box.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_points: Sequence[int],
        offset_scale: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_points = tuple(num_points)
        total = num_heads * sum(num_points)
        self.sampling_offsets = nn.Linear(embed_dims, total * 2)
        self.attention_weights = nn.Linear(embed_dims, total)
        scales = torch.tensor([1 / n for n in num_points for _ in range(n)]) * offset_scale
        self.register_buffer('point_scale', scales[:, None], persistent=False)
        self._init_rays()

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
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Query (B, Q, D) at boxes (B, Q, 4), value (B, Σ H_l W_l, heads, C) to (B, Q, D)."""
        shape = (*query.shape[:2], self.num_heads, len(self.point_scale))
        offsets = self.sampling_offsets(query).view(*shape, 2)
        weights = self.attention_weights(query).view(shape)
        centres, sizes = references[:, :, None, None].split(2, dim=-1)
        locations = centres + offsets * self.point_scale * sizes
        return deformable_attention(
            value, spatial_shapes, locations, weights.softmax(-1), self.num_points
        )


class Gateway(nn.Module):
    """Gated sum of the query and what cross-attention brings, normed (D-FINE)."""

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * embed_dims, 2 * embed_dims)
        self.norm = nn.LayerNorm(embed_dims)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, query: Tensor, update: Tensor) -> Tensor:
        gates = self.gate(torch.cat([query, update], dim=-1)).sigmoid()
        keep, take = gates.chunk(2, dim=-1)
        return self.norm(keep * query + take * update)


class DFINEDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention through a gateway, FFN; all post-norm."""

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        ffn_channels: int,
        num_points: Sequence[int],
        act: str,
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(embed_dims, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(embed_dims)
        self.cross_attn = DeformableCrossAttention(embed_dims, num_heads, num_points)
        self.gateway = Gateway(embed_dims)
        self.linear1 = nn.Linear(embed_dims, ffn_channels)
        self.act = build_activation(act)
        self.linear2 = nn.Linear(ffn_channels, embed_dims)
        self.norm3 = nn.LayerNorm(embed_dims)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        references: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        attn_mask: Tensor | None,
    ) -> Tensor:
        positioned = query + position
        attended = self.self_attn(
            positioned, positioned, query, attn_mask=attn_mask, need_weights=False
        )[0]
        query = self.norm1(query + attended)
        update = self.cross_attn(query + position, references, value, spatial_shapes)
        query = self.gateway(query, update)
        update = self.linear2(self.act(self.linear1(query)))
        # Half precision overflows beyond this bound.
        return self.norm3((query + update).clamp(-65504, 65504))


class LocationQualityEstimator(nn.Module):
    """Adds to the class scores what the sides' distributions tell about the box (LQE).

    Args:
        top_k: Largest probabilities of each side that are looked at, with their mean.
        hidden_dims: Width of the MLP.
        act: Its activation.
    """

    def __init__(self, act: str, top_k: int = 4, hidden_dims: int = 64) -> None:
        super().__init__()
        self.top_k = top_k
        self.mlp = MLP([4 * (top_k + 1), hidden_dims, 1], act).zero_last()

    def forward(self, scores: Tensor, distributions: Tensor) -> Tensor:
        """Scores (B, Q, C) and distribution logits (B, Q, 4 · bins) to scores (B, Q, C)."""
        probabilities = distributions.unflatten(-1, (4, -1)).softmax(-1)
        top = probabilities.topk(self.top_k, dim=-1).values
        statistics = torch.cat([top, top.mean(-1, keepdim=True)], dim=-1)
        return scores + self.mlp(statistics.flatten(-2))


class DFINEDecoder(nn.Module):
    """Decoder layers with their score, box and distribution heads.

    Args:
        num_classes: C.
        embed_dims: D.
        num_layers: L.
        num_heads: Attention heads.
        ffn_channels: Width of the FFNs.
        num_points: Sampling points on each level.
        reg_max: Bins of a distribution less one.
        reg_scale: Steepness of the bins' distances.
        act: Activation of FFNs and MLPs.
        score_bias: Bias of the score heads at the start.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        num_layers: int,
        num_heads: int,
        ffn_channels: int,
        num_points: Sequence[int],
        reg_max: int,
        reg_scale: float,
        act: str,
        score_bias: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reg_max = reg_max
        self.layers = nn.ModuleList(
            DFINEDecoderLayer(embed_dims, num_heads, ffn_channels, num_points, act)
            for _ in range(num_layers)
        )
        self.query_position = MLP([4, 2 * embed_dims, embed_dims], act)
        self.score_heads = nn.ModuleList(
            nn.Linear(embed_dims, num_classes) for _ in range(num_layers)
        )
        self.initial_box_head = MLP([embed_dims] * 3 + [4], act).zero_last()
        self.distribution_heads = nn.ModuleList(
            MLP([embed_dims] * 3 + [4 * (reg_max + 1)], act).zero_last() for _ in range(num_layers)
        )
        self.quality_estimators = nn.ModuleList(
            LocationQualityEstimator(act) for _ in range(num_layers)
        )
        # Part of the checkpoints, but never trained.
        self.up = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        self.reg_scale = nn.Parameter(torch.tensor([float(reg_scale)]), requires_grad=False)
        for layer in self.query_position.layers:
            nn.init.xavier_uniform_(layer.weight)
        for head in self.score_heads:
            nn.init.constant_(head.bias, score_bias)

    def bin_distances(self) -> Tensor:
        """W(n), (reg_max + 1,)."""
        return weighting_function(self.reg_max, self.up, self.reg_scale)

    def forward(
        self,
        content: Tensor,
        reference_logits: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        attn_mask: Tensor | None = None,
    ) -> DecoderPredictions:
        """Decode queries (B, Q, D) that start at boxes (B, Q, 4) before the sigmoid.

        Args:
            content: (B, Q, D).
            reference_logits: (B, Q, 4).
            memory: (B, Σ H_l W_l, D).
            spatial_shapes: (H_l, W_l) of each level.
            attn_mask: (Q, Q) bool, true where self-attention is forbidden.

        Returns:
            In training the predictions of all layers, in evaluation (L = 1) of the last.
        """
        value = memory.unflatten(-1, (self.num_heads, -1))
        bins = self.bin_distances()
        references = reference_logits.sigmoid()
        query, previous_query, distributions = content, 0, 0
        scores, boxes, all_distributions = [], [], []
        for i, layer in enumerate(self.layers):
            position = self.query_position(references).clamp(-10, 10)
            query = layer(query, position, references, value, spatial_shapes, attn_mask)
            if i == 0:
                initial_boxes = (
                    self.initial_box_head(query) + inverse_sigmoid(references)
                ).sigmoid()
                initial_scores = self.score_heads[0](query)
                initial_references = initial_boxes.detach()
            distributions = self.distribution_heads[i](query + previous_query) + distributions
            layer_boxes = distances_to_boxes(
                initial_references, expected_distances(distributions, bins), self.reg_scale
            )
            if self.training or i == len(self.layers) - 1:
                layer_scores = self.score_heads[i](query)
                scores.append(self.quality_estimators[i](layer_scores, distributions))
                boxes.append(layer_boxes)
                all_distributions.append(distributions)
            references, previous_query = layer_boxes.detach(), query.detach()
        return DecoderPredictions(
            scores=torch.stack(scores),
            boxes=torch.stack(boxes),
            distributions=torch.stack(all_distributions),
            references=initial_references,
            initial_scores=initial_scores,
            initial_boxes=initial_boxes,
        )
