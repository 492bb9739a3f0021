"""The decoder of RT-DETR (arXiv 2304.08069) and RT-DETRv2 (arXiv 2407.17140)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .basic import MLP, inverse_sigmoid
from .decoder import DecoderLayer, DecoderPredictions, DeformableCrossAttention
from .linear import Linear


class ProjectedCrossAttention(DeformableCrossAttention):
    """Deformable attention with a projection of values and output (Deformable DETR)."""

    def __init__(
        self, embed_dims: int, num_heads: int, num_points: Sequence[int], method: str
    ) -> None:
        super().__init__(embed_dims, num_heads, num_points, method=method)
        self.value_proj = Linear(embed_dims, embed_dims)
        self.output_proj = Linear(embed_dims, embed_dims)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        attended = super().forward(query, references, self.value_proj(memory), spatial_shapes)
        return self.output_proj(attended)


class RTDETRDecoderLayer(DecoderLayer):
    """Decoder layer that adds what cross-attention brings, and norms."""

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        ffn_channels: int,
        num_points: Sequence[int],
        act: str,
        method: str,
    ) -> None:
        cross_attn = ProjectedCrossAttention(embed_dims, num_heads, num_points, method)
        super().__init__(embed_dims, num_heads, ffn_channels, act, cross_attn)
        self.norm2 = nn.LayerNorm(embed_dims)

    def join(self, query: Tensor, update: Tensor) -> Tensor:
        return self.norm2(query + update)


class RTDETRDecoder(nn.Module):
    """Decoder layers with their score and box heads.

    Args:
        num_classes: C.
        embed_dims: D.
        num_layers: Layers that are trained.
        num_eval_layers: Layers that are used in evaluation, at most ``num_layers``.
        num_heads: Attention heads.
        ffn_channels: Width of the FFNs.
        num_points: Sampling points on each level.
        query_position_channels: Hidden widths of the MLP that makes a query's position of its box.
        method: 'default' or 'discrete' sampling.
        act: Activation of FFNs and MLPs.
        score_bias: Bias of the score heads at the start.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        num_layers: int,
        num_eval_layers: int,
        num_heads: int,
        ffn_channels: int,
        num_points: Sequence[int],
        query_position_channels: Sequence[int],
        method: str,
        act: str,
        score_bias: float,
    ) -> None:
        super().__init__()
        self.num_eval_layers = num_eval_layers
        self.layers = nn.ModuleList(
            RTDETRDecoderLayer(embed_dims, num_heads, ffn_channels, num_points, act, method)
            for _ in range(num_layers)
        )
        self.query_position = MLP([4, *query_position_channels, embed_dims], act)
        self.score_heads = nn.ModuleList(Linear(embed_dims, num_classes) for _ in range(num_layers))
        self.box_heads = nn.ModuleList(
            MLP([embed_dims] * 3 + [4], act).zero_last() for _ in range(num_layers)
        )
        for layer in self.query_position.layers:
            nn.init.xavier_uniform_(layer.weight)
        for head in self.score_heads:
            nn.init.constant_(head.bias, score_bias)

    def forward(
        self,
        content: Tensor,
        reference_logits: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        attn_mask: Tensor | None = None,
        all_layers: bool = False,
    ) -> DecoderPredictions:
        """Decode queries (B, Q, D) that start at boxes (B, Q, 4) before the sigmoid.

        Args:
            content: (B, Q, D).
            reference_logits: (B, Q, 4).
            memory: (B, Σ H_l W_l, D).
            spatial_shapes: (H_l, W_l) of each level.
            attn_mask: (Q, Q) bool, true where self-attention is forbidden.
            all_layers: Whether to predict with all layers, as losses need it.

        Returns:
            The predictions of all layers, or (L = 1) of the last one used in evaluation.
        """
        used = len(self.layers) if all_layers else self.num_eval_layers
        query, references = content, reference_logits.sigmoid()
        previous_boxes = references
        scores, boxes = [], []
        for i, layer in enumerate(self.layers[:used]):
            position = self.query_position(references)
            query = layer(query, position, references, memory, spatial_shapes, attn_mask)
            offsets = self.box_heads[i](query)
            layer_boxes = (offsets + inverse_sigmoid(references)).sigmoid()
            if all_layers or i == used - 1:
                # The same box, but its loss also reaches the layer that it refines ("look forward
                # twice", DINO, arXiv 2203.03605).
                boxes.append((offsets + inverse_sigmoid(previous_boxes)).sigmoid())
                scores.append(self.score_heads[i](query))
            references, previous_boxes = layer_boxes.detach(), layer_boxes
        return DecoderPredictions(scores=torch.stack(scores), boxes=torch.stack(boxes))
