"""The decoder of D-FINE (arXiv 2410.13842): boxes refined as distributions, layer by layer.

DEIMv2 (arXiv 2509.20787) and EdgeCrafter's ECDet (arXiv 2603.18739) change its layers.
"""

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ...utils.arguments import check_count
from ...utils.errors import UserError
from .basic import MLP, RMSNorm, bounded, init_scores, inverse_sigmoid
from .decoder import DecoderLayer, DeformableCrossAttention, check_sizes
from .distribution import (
    bin_probabilities,
    distances_to_boxes,
    expected_distances,
    weighting_function,
)
from .predictions import Predictions, full_precision


class LocationQualityEstimator(nn.Module):
    """Corrects class scores by the shape of the sides' distributions (LQE of D-FINE).

    A sharp distribution is a sign of a well placed side. The correction starts as 0.

    Args:
        act: Type of the MLP's activation in mmcv's registry.
        top_k: How many of a side's largest probabilities the MLP sees, beside their mean.
        hidden_dims: Width of the MLP.
    """

    def __init__(self, act: str, top_k: int = 4, hidden_dims: int = 64) -> None:
        super().__init__()
        self.top_k = top_k
        self.mlp = MLP([4 * (top_k + 1), hidden_dims, 1], act).zero_last()

    def forward(self, scores: Tensor, probabilities: Tensor) -> Tensor:
        """Correct class logits (B, Q, C) by the bins' probabilities (B, Q, 4, bins)."""
        top = probabilities.topk(self.top_k, dim=-1).values
        statistics = torch.cat([top, top.mean(-1, keepdim=True)], dim=-1)
        return scores + self.mlp(statistics.flatten(-2).to(scores.dtype))


@MODELS.register_module()
class DFINEDecoder(nn.Module):
    """Decoder layers with their score, box and distribution heads.

    The head hands down ``num_classes``, ``embed_dims`` and ``num_levels``.

    Args:
        num_classes: Number of categories, without background.
        embed_dims: Width of queries and tokens, divisible by ``num_heads``.
        num_levels: Number of feature levels.
        num_points: Sampling points of the cross-attention on each level.
        num_layers: Decoder layers.
        num_heads: Attention heads.
        ffn_channels: Width of the feed-forward networks (FFNs).
        reg_max: Number of intervals between the bins of a side's distribution; even, at least 4.
        reg_scale: Steepness of the bins' distances, positive. With a larger one the bins are finer
            near 0 and coarser farther out. The outermost ones lie one side of the reference box
            away, whatever the steepness.
        act: Activation of FFNs and MLPs: SiLU in DEIM, ReLU in D-FINE.

    Attributes:
        ffn_act: Activation of the FFNs, if it is another one.
        norm: Class of the layers' norms.
        gateway: Whether the layers have a gateway.
        shared_heads: Whether all layers share one distribution head.
        initial_position: Whether a query's position is that of its initial reference box in all
            layers; otherwise each layer makes it of its own reference box.

    Raises:
        ValueError: Levels or widths don't agree, ``reg_max`` is odd or under 4, or there is no
            layer.
    """

    ffn_act: str | None = None
    norm: type[nn.Module] = nn.LayerNorm
    gateway = True
    shared_heads = False
    initial_position = False

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        num_levels: int,
        num_points: Sequence[int],
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_channels: int = 1024,
        reg_max: int = 32,
        reg_scale: float = 4.0,
        act: str = 'SiLU',
    ) -> None:
        super().__init__()
        check_sizes(self, embed_dims, num_heads, num_points, num_levels)
        check_count(self, 'num_layers', num_layers)
        if reg_max % 2 or reg_max < 4:
            raise UserError(f'DFINEDecoder needs an even reg_max of at least 4, got {reg_max}')
        self.reg_max = reg_max
        self.layers = nn.ModuleList(
            DecoderLayer(
                embed_dims,
                num_heads,
                ffn_channels,
                self.ffn_act or act,
                DeformableCrossAttention(embed_dims, num_heads, num_points),
                self.norm,
                self.gateway,
            )
            for _ in range(num_layers)
        )
        hidden = [embed_dims] * 2 if self.initial_position else [2 * embed_dims]
        self.query_position = MLP([4, *hidden, embed_dims], act)
        self.score_heads = nn.ModuleList(
            init_scores(nn.Linear(embed_dims, num_classes)) for _ in range(num_layers)
        )
        self.initial_box_head = MLP([embed_dims] * 3 + [4], act).zero_last()
        heads = [
            MLP([embed_dims] * 3 + [4 * (reg_max + 1)], act).zero_last()
            for _ in range(1 if self.shared_heads else num_layers)
        ]
        # A shared head has a name for each layer, as in the published weights.
        self.distribution_heads = nn.ModuleList(heads * num_layers if self.shared_heads else heads)
        self.quality_estimators = nn.ModuleList(
            LocationQualityEstimator(act) for _ in range(num_layers)
        )
        # Part of the checkpoints, but never trained.
        self.up = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        self.reg_scale = nn.Parameter(torch.tensor([float(reg_scale)]), requires_grad=False)
        # The table of a fused model, in which the two numbers above don't change any more.
        self.register_buffer('fixed_bin_distances', None, persistent=False)
        for layer in self.query_position.layers:
            nn.init.xavier_uniform_(layer.weight)

    def bin_distances(self) -> Tensor:
        """Table (reg_max + 1,), in float32 at least: the distance W(n) that bin n stands for."""
        table = self.fixed_bin_distances
        # A model that was cast to half precision after it was fused has rounded the table.
        if table is not None and table.dtype == full_precision(table).dtype:
            return table
        return weighting_function(self.reg_max, self.up, self.reg_scale)

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
            Predictions of all layers, or of the last.
        """
        bin_distances = self.bin_distances()
        references = full_precision(reference_logits).sigmoid()
        # Layers add to the distributions, in the precision of boxes.
        query, previous_query, distributions = content, 0, references.new_zeros(1)
        initial_scores = None
        scores, boxes, all_distributions = [], [], []
        for i, layer in enumerate(self.layers):
            if i == 0 or not self.initial_position:
                position = bounded(self.query_position(references.to(query.dtype)), 10)
            query = layer(query, position, references, memory, spatial_shapes, attn_mask)
            if i == 0:
                initial_boxes = (
                    self.initial_box_head(query) + inverse_sigmoid(references)
                ).sigmoid()
                if all_layers:
                    initial_scores = self.score_heads[0](query)
                initial_references = initial_boxes.detach()
            distributions = self.distribution_heads[i](query + previous_query) + distributions
            probabilities = bin_probabilities(distributions)
            distances = expected_distances(probabilities, bin_distances)
            layer_boxes = distances_to_boxes(initial_references, distances, self.reg_scale)
            if all_layers or i == len(self.layers) - 1:
                layer_scores = self.score_heads[i](query)
                scores.append(self.quality_estimators[i](layer_scores, probabilities))
                boxes.append(layer_boxes)
                all_distributions.append(distributions)
            references, previous_query = layer_boxes.detach(), query.detach()
        return Predictions(
            scores=torch.stack(scores),
            boxes=torch.stack(boxes),
            distributions=torch.stack(all_distributions),
            references=initial_references[None],
            initial_scores=None if initial_scores is None else initial_scores[None],
            # A copy: compilers fail on two results that share memory (torch 2.13).
            initial_boxes=torch.stack([initial_boxes]),
            bin_distances=bin_distances,
            reg_scale=self.reg_scale,
        )


@MODELS.register_module()
class ECDetDecoder(DFINEDecoder):
    """Decoder of ECDet (arXiv 2603.18739): a query has one position for all layers.

    Arguments are those of :class:`DFINEDecoder`.
    """

    initial_position = True


@MODELS.register_module()
class DEIMv2Decoder(ECDetDecoder):
    """Decoder of DEIMv2 N to X (arXiv 2509.20787): ECDet's with RMSNorm and SwiGLU.

    Arguments are those of :class:`DFINEDecoder`.
    """

    ffn_act = 'SwiGLU'
    norm = RMSNorm


@MODELS.register_module()
class DEIMv2LightDecoder(DEIMv2Decoder):
    """Decoder of DEIMv2 Atto to Pico: without gateways, and with one head for distributions.

    Arguments are those of :class:`DFINEDecoder`.
    """

    gateway = False
    shared_heads = True
