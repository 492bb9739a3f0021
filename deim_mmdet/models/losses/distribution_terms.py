"""Loss terms on the distributions of D-FINE's decoder layers."""

import torch
from mmdet.registry import MODELS
from torch import Tensor

from ...utils.errors import UserError
from ..layers.distribution import boxes_to_bins
from .matched_sets import MatchedSets
from .terms import LossTerm, no_pairs


def _logits(matched: MatchedSets) -> Tensor:
    """Logits (L, B, Q, 4, bins) of the distributions of each layer.

    Raises:
        ValueError: The decoder predicts no distributions. Or pairs differ from set to set, but
            these terms compare layers query by query.
    """
    if matched.sets.layers.distributions is None:
        raise UserError(
            'a term on distributions needs a decoder that predicts them, such as DFINEDecoder: set '
            'criterion.terms.loss_fgl=None and loss_ddf=None, or take SetCriterion'
        )
    if matched.pairs.sets is not None:
        raise UserError("a term on distributions needs pairs='union' in its config")
    return matched.sets.layers.distributions.unflatten(-1, (4, -1))


@MODELS.register_module()
class DistributionTerm(LossTerm):
    """Loss between each layer's distributions and the target's place among the bins (FGL).

    The IoU of a pair weights its loss.
    """

    def prefixes(self, matched: MatchedSets) -> list[str]:
        """Prefixes of the decoder layers."""
        return matched.sets.prefixes[: matched.sets.num_layers]

    def forward(self, matched: MatchedSets) -> Tensor:
        """Loss (L,) of each of L layers."""
        logits, pairs, layers = _logits(matched), matched.pairs, matched.sets.layers
        if len(pairs) == 0:
            return no_pairs(logits)
        num_layers = len(logits)
        lower, upper_weight = boxes_to_bins(
            layers.references[0, pairs.images, pairs.queries],
            matched.target_corners[0],
            layers.bin_distances,
            layers.reg_scale,
        )
        loss = self.loss(
            logits[pairs.place].flatten(0, 2),
            (lower + upper_weight).expand(num_layers, -1, -1).flatten(),
            weight=matched.iou[:num_layers, :, None].expand(-1, -1, 4).flatten(),
            reduction_override='none',
        )
        return loss.view(num_layers, -1).sum(1) / matched.normaliser


@MODELS.register_module()
class DistillationTerm(LossTerm):
    """Distillation of the last layer's distributions into those of earlier layers (DDF).

    The IoU weights the loss of a pair. The best score of the last layer weights that of another
    query.
    """

    def prefixes(self, matched: MatchedSets) -> list[str]:
        """Prefixes of all decoder layers but the last."""
        return matched.sets.prefixes[: matched.sets.num_layers - 1]

    def forward(self, matched: MatchedSets) -> Tensor:
        """Loss (L - 1,) of each layer but the last."""
        logits, pairs = _logits(matched), matched.pairs
        num_layers, batch, num_queries = logits.shape[:3]
        paired = torch.zeros(batch, num_queries, dtype=torch.bool, device=logits.device)
        # A number instead of a tensor would be copied to the GPU, and the host would wait for it.
        paired[pairs.images, pairs.queries] = paired.new_ones(())
        confidence = matched.sets.layers.scores[-1].detach().amax(-1).sigmoid()
        weight = confidence.repeat(num_layers - 1, 1, 1)
        weight[pairs.place] = matched.iou[: num_layers - 1]
        return self.loss(
            logits[:-1].flatten(1, 3),
            logits[-1].flatten(0, 2),
            weight[..., None].expand(-1, -1, -1, 4).flatten(1),
            avg_factor=matched.counts * 4,
            matched=paired[..., None].expand(-1, -1, 4).flatten(),
            balance=matched.balance(),
        )
