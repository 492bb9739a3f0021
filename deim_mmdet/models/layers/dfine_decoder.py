"""The decoder of D-FINE (arXiv 2410.13842): boxes refined as distributions, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .basic import MLP, inverse_sigmoid
from .decoder import DecoderLayer, DecoderPredictions, DeformableCrossAttention
from .distribution import distances_to_boxes, expected_distances, weighting_function
from .linear import Linear


@dataclass
class DFINEPredictions(DecoderPredictions):
    """What D-FINE's L decoder layers predict for Q queries, layers first.

    Attributes:
        distributions: (L, B, Q, 4 · bins) logits of the sides' distributions.
        references: (B, Q, 4) reference boxes of all distributions, without gradient.
        initial_scores: (B, Q, C) class logits of the traditional head of the first layer; ``None``
            where only the last layer's predictions are wanted.
        initial_boxes: (B, Q, 4) boxes of that head.
    """

    distributions: Tensor
    references: Tensor
    initial_scores: Tensor | None
    initial_boxes: Tensor


class Gateway(nn.Module):
    """Gated sum of the query and what cross-attention brings, normed (D-FINE)."""

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.gate = Linear(2 * embed_dims, 2 * embed_dims)
        self.norm = nn.LayerNorm(embed_dims)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, query: Tensor, update: Tensor) -> Tensor:
        gates = self.gate(torch.cat([query, update], dim=-1)).sigmoid()
        keep, take = gates.chunk(2, dim=-1)
        return self.norm(keep * query + take * update)


class DFINEDecoderLayer(DecoderLayer):
    """Decoder layer whose cross-attention joins the query through a gateway."""

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        ffn_channels: int,
        num_points: Sequence[int],
        act: str,
    ) -> None:
        cross_attn = DeformableCrossAttention(embed_dims, num_heads, num_points)
        super().__init__(embed_dims, num_heads, ffn_channels, act, cross_attn)
        self.gateway = Gateway(embed_dims)

    def join(self, query: Tensor, update: Tensor) -> Tensor:
        return self.gateway(query, update)


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
        probabilities = distributions.reshape(*distributions.shape[:-1], 4, -1).softmax(-1)
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
        self.reg_max = reg_max
        self.layers = nn.ModuleList(
            DFINEDecoderLayer(embed_dims, num_heads, ffn_channels, num_points, act)
            for _ in range(num_layers)
        )
        self.query_position = MLP([4, 2 * embed_dims, embed_dims], act)
        self.score_heads = nn.ModuleList(Linear(embed_dims, num_classes) for _ in range(num_layers))
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
        # W(n) of a model whose two numbers above don't change any more.
        self.register_buffer('fixed_bin_distances', None, persistent=False)
        for layer in self.query_position.layers:
            nn.init.xavier_uniform_(layer.weight)
        for head in self.score_heads:
            nn.init.constant_(head.bias, score_bias)

    def bin_distances(self) -> Tensor:
        """W(n), (reg_max + 1,)."""
        if self.fixed_bin_distances is not None:
            return self.fixed_bin_distances
        return weighting_function(self.reg_max, self.up, self.reg_scale)

    def forward(
        self,
        content: Tensor,
        reference_logits: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        attn_mask: Tensor | None = None,
        all_layers: bool = False,
    ) -> DFINEPredictions:
        """Decode queries (B, Q, D) that start at boxes (B, Q, 4) before the sigmoid.

        Args:
            content: (B, Q, D).
            reference_logits: (B, Q, 4).
            memory: (B, Σ H_l W_l, D).
            spatial_shapes: (H_l, W_l) of each level.
            attn_mask: (Q, Q) bool, true where self-attention is forbidden.
            all_layers: Whether to predict with all layers, as losses need it.

        Returns:
            The predictions of all layers, or (L = 1) of the last.
        """
        bins = self.bin_distances()
        references = reference_logits.sigmoid()
        query, previous_query, distributions = content, 0, 0
        initial_scores = None
        scores, boxes, all_distributions = [], [], []
        for i, layer in enumerate(self.layers):
            position = self.query_position(references).clamp(-10, 10)
            query = layer(query, position, references, memory, spatial_shapes, attn_mask)
            if i == 0:
                initial_boxes = (
                    self.initial_box_head(query) + inverse_sigmoid(references)
                ).sigmoid()
                if all_layers:
                    initial_scores = self.score_heads[0](query)
                initial_references = initial_boxes.detach()
            distributions = self.distribution_heads[i](query + previous_query) + distributions
            layer_boxes = distances_to_boxes(
                initial_references, expected_distances(distributions, bins), self.reg_scale
            )
            if all_layers or i == len(self.layers) - 1:
                layer_scores = self.score_heads[i](query)
                scores.append(self.quality_estimators[i](layer_scores, distributions))
                boxes.append(layer_boxes)
                all_distributions.append(distributions)
            references, previous_query = layer_boxes.detach(), query.detach()
        return DFINEPredictions(
            scores=torch.stack(scores),
            boxes=torch.stack(boxes),
            distributions=torch.stack(all_distributions),
            references=initial_references,
            initial_scores=initial_scores,
            initial_boxes=initial_boxes,
        )
