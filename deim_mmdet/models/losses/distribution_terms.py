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

    def sets(self, matched: MatchedSets) -> slice:
        """The decoder layers."""
        return slice(matched.sets.num_layers)

    def forward(self, matched: MatchedSets) -> Tensor:
        """Losses (V,) of the layers; see :class:`LossTerm`."""
        logits, layers = _logits(matched), matched.sets.layers
        if len(matched.pairs) == 0:
            return no_pairs(logits)
        num_layers = len(logits)
        lower, upper_weight = boxes_to_bins(
            matched.of_queries(layers.references)[0],
            matched.target_corners[0],
            layers.bin_distances,
            layers.reg_scale,
        )
        loss = self.loss(
            matched.of_queries(logits).flatten(0, 2),
            (lower + upper_weight).expand(num_layers, -1, -1).flatten(),
            weight=matched.iou[:num_layers, :, None].expand(-1, -1, 4).flatten(),
            reduction_override='none',
        )
        return matched.sum_of_pairs(loss, self.sets(matched))


@MODELS.register_module()
class DistillationTerm(LossTerm):
    """Distillation of the last layer's distributions into those of earlier layers (DDF).

    The IoU weights the loss of a pair. The best score of the last layer weights that of another
    query. The numbers of paired and of other matching queries weight these two kinds, among the
    denoising queries, too.
    """

    def sets(self, matched: MatchedSets) -> slice:
        """All decoder layers but the last."""
        return slice(matched.sets.num_layers - 1)

    def forward(self, matched: MatchedSets) -> Tensor:
        """Losses (V,) of the layers but the last; see :class:`LossTerm`."""
        logits, parts = _logits(matched), matched.parts
        students, queries = len(logits) - 1, logits.shape[1:3]
        # The kind of each query: paired or not, in either part; or none, where it fills up.
        kinds = logits.new_full(queries, 2 * len(parts), dtype=torch.int64)
        for number, part in enumerate(parts):
            # Not an assignment, which would make a tensor of the number.
            kinds[:, part.queries].fill_(2 * number + 1)
        matched.put(kinds[None], matched.of_queries(kinds[None]) - 1)
        confidence = matched.sets.layers.scores[-1].detach().amax(-1).sigmoid()
        weight = matched.put(confidence.repeat(students, 1, 1), matched.iou[:students])
        indices = torch.arange(2 * len(parts), device=kinds.device).view(-1, 2, 1)
        losses = self.loss(
            logits[:-1].flatten(1, 3),
            logits[-1].flatten(0, 2),
            weight[..., None].expand(-1, -1, -1, 4).flatten(1),
            avg_factor=torch.stack([part.counts for part in parts]) * 4,
            matched=kinds[..., None].expand(-1, -1, 4).flatten() == indices,
            balance=parts[0].counts,
        )
        # Part after part.
        return losses.transpose(0, -1).flatten()
