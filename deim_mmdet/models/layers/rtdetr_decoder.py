"""The decoder of RT-DETR (arXiv 2304.08069) and RT-DETRv2 (arXiv 2407.17140)."""

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ...ops import SAMPLING_METHODS
from ...utils.errors import UserError
from .basic import MLP, init_scores, inverse_sigmoid
from .decoder import DecoderLayer, DeformableCrossAttention, check_sizes
from .predictions import Predictions, full_precision


class ProjectedCrossAttention(DeformableCrossAttention):
    """Deformable attention that projects its values and its output (arXiv 2010.04159).

    Arguments are those of :class:`DeformableCrossAttention`.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, num_points: Sequence[int], method: str
    ) -> None:
        super().__init__(embed_dims, num_heads, num_points, method=method)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
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


@MODELS.register_module()
class RTDETRDecoder(nn.Module):
    """Decoder layers with their score and box heads.

    The head hands down ``num_classes``, ``embed_dims`` and ``num_levels``.

    Args:
        num_classes: Number of categories, without background.
        embed_dims: Width of queries and tokens, divisible by ``num_heads``.
        num_levels: Number of feature levels.
        num_points: Sampling points of the cross-attention on each level.
        num_layers: Decoder layers that are trained.
        num_eval_layers: Number of layers, from the first, that evaluation uses. Default: all.
        num_heads: Attention heads.
        ffn_channels: Width of the feed-forward networks (FFNs).
        query_position_channels: Hidden widths of the MLP that makes a query's position of its box:
            two of ``embed_dims`` in DEIM, one of twice that in RT-DETR.
        sampling: 'default' (bilinear) or 'discrete' (nearest pixel, with frozen offsets). RT-DETRv2
            fine-tunes with 'discrete' for devices without ``grid_sample``.
        act: Activation of FFNs and MLPs: SiLU in DEIM, ReLU in RT-DETR.

    Raises:
        ValueError: Levels, widths or numbers of layers don't agree, or ``sampling`` is unknown.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        num_levels: int,
        num_points: Sequence[int],
        num_layers: int = 6,
        num_eval_layers: int | None = None,
        num_heads: int = 8,
        ffn_channels: int = 1024,
        query_position_channels: Sequence[int] = (256, 256),
        sampling: str = 'default',
        act: str = 'SiLU',
    ) -> None:
        super().__init__()
        check_sizes(self, embed_dims, num_heads, num_points, num_levels)
        num_eval_layers = num_layers if num_eval_layers is None else num_eval_layers
        if not 1 <= num_eval_layers <= num_layers:
            raise UserError(
                f'RTDETRDecoder: num_eval_layers={num_eval_layers} must be within the '
                f'num_layers={num_layers} that are trained'
            )
        if sampling not in SAMPLING_METHODS:
            raise UserError(
                f'RTDETRDecoder: sampling must be one of {SAMPLING_METHODS}, got {sampling!r}'
            )
        self.num_eval_layers = num_eval_layers
        self.layers = nn.ModuleList(
            DecoderLayer(
                embed_dims,
                num_heads,
                ffn_channels,
                act,
                ProjectedCrossAttention(embed_dims, num_heads, num_points, sampling),
            )
            for _ in range(num_layers)
        )
        self.query_position = MLP([4, *query_position_channels, embed_dims], act)
        self.score_heads = nn.ModuleList(
            init_scores(nn.Linear(embed_dims, num_classes)) for _ in range(num_layers)
        )
        self.box_heads = nn.ModuleList(
            MLP([embed_dims] * 3 + [4], act).zero_last() for _ in range(num_layers)
        )
        for layer in self.query_position.layers:
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self,
        content: Tensor,
        reference_logits: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        attn_mask: Tensor | None = None,
        all_layers: bool = False,
    ) -> Predictions:
        """Decode queries that start at reference boxes.

        Args:
            content: (B, Q, D) Q queries of width D for each of B images.
            reference_logits: (B, Q, 4) reference boxes (cx, cy, w, h) before the sigmoid.
            memory: (B, Σ H_l · W_l, D) tokens of all levels, one level after another.
            spatial_shapes: (H_l, W_l) of each level l.
            attn_mask: (Q, Q) that self-attention adds to its logits: 0, or -∞ where it is
                forbidden.
            all_layers: Whether all layers predict, as losses need it.

        Returns:
            Predictions of all layers, or of the last one that evaluation uses.
        """
        used = len(self.layers) if all_layers else self.num_eval_layers
        query, references = content, full_precision(reference_logits).sigmoid()
        previous_boxes = references
        scores, boxes = [], []
        for i, layer in enumerate(self.layers[:used]):
            position = self.query_position(references.to(query.dtype))
            query = layer(query, position, references, memory, spatial_shapes, attn_mask)
            offsets = self.box_heads[i](query)
            layer_boxes = (offsets + inverse_sigmoid(references)).sigmoid()
            if all_layers or i == used - 1:
                # The box is the same, but its loss also reaches the layer before ("look forward
                # twice", DINO, arXiv 2203.03605).
                boxes.append((offsets + inverse_sigmoid(previous_boxes)).sigmoid())
                scores.append(self.score_heads[i](query))
            references, previous_boxes = layer_boxes.detach(), layer_boxes
        return Predictions(scores=torch.stack(scores), boxes=torch.stack(boxes))
