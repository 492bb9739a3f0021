"""The training losses: a list of terms on stacked predictions."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from mmdet.registry import MODELS, TASK_UTILS
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from ...utils.components import merged
from ...utils.errors import UserError, UserTypeError
from ..layers.predictions import Predictions
from ..task_modules import Pairs, Targets, denoising_pairs, union_set
from ..task_modules.pairs import to_device
from .auxiliary_term import AuxiliaryTerm, EncoderView
from .matched_sets import MatchedSets, Part, PredictionSets


@MODELS.register_module()
class SetCriterion(nn.Module):
    """Matching and loss terms of decoder layers, encoder and denoising, as in RT-DETR.

    See :mod:`~deim_mmdet.models.losses.matched_sets` for sets and pairs.

    Args:
        matcher: Config of the matcher, which pairs each set with the objects. Its ``match`` is
            called as that of :class:`HungarianMatcher`; it returns pairs, or a function for them.
        terms: Config of each :class:`LossTerm` or :class:`AuxiliaryTerm` by name, merged into
            :attr:`default_terms`. None removes a term.
        late_matcher: Config of the matcher that takes over where :attr:`late` is set, in the last
            epochs. None for no change.

    Raises:
        TypeError: A matcher has no ``match``.
        ValueError: A term's name has no ``loss`` in it, so that it would not be trained; the name
            of a term to be removed is misspelt; or no term is left.

    Attributes:
        late: Whether the late matcher matches.
            :class:`~deim_mmdet.engine.DenseO2OScheduleHook` sets it by epoch.

    Example:
        >>> criterion = dict(
        ...     type='SetCriterion',
        ...     terms=dict(loss_cls=dict(loss=dict(type='VarifocalQualityLoss', alpha=0.75))))
    """

    default_terms: Mapping[str, dict] = dict(
        loss_cls=dict(
            type='ClassificationTerm',
            loss=dict(type='MatchabilityAwareLoss', gamma=1.5, loss_weight=1.0),
        ),
        loss_bbox=dict(type='DistanceTerm', loss=dict(type='L1Loss', loss_weight=5.0)),
        loss_iou=dict(
            type='OverlapTerm', loss=dict(type='PairedGIoULoss', eps=1e-9, loss_weight=2.0)
        ),
    )

    def __init__(
        self,
        matcher: dict = dict(type='HungarianMatcher'),
        terms: dict | None = None,
        late_matcher: dict | None = None,
    ) -> None:
        super().__init__()
        self.matcher = _built_matcher(matcher)
        self.late_matcher = None if late_matcher is None else _built_matcher(late_matcher)
        self.late = False
        for name, config in (terms or {}).items():
            if 'loss' not in name:
                raise UserError(
                    f"criterion.terms.{name} would not be trained: mmdet sums what has 'loss' in "
                    f'its name, so call it loss_{name}'
                )
            # None for another name takes back what a base config has added.
            known = name in self.default_terms
            if config is None and not known and get_close_matches(name, self.default_terms, 1, 0.8):
                raise UserError(
                    f'criterion.terms.{name}=None removes nothing: the terms are '
                    f'{", ".join(self.default_terms)}'
                )
        terms = merged(self.default_terms, terms or {})
        self.terms, self.auxiliary_terms = nn.ModuleDict(), nn.ModuleDict()
        for name, config in terms.items():
            if config is not None:
                term = MODELS.build(config)
                auxiliary = isinstance(term, AuxiliaryTerm)
                (self.auxiliary_terms if auxiliary else self.terms)[name] = term
        if not self.terms:
            raise UserError('criterion.terms leaves no term to train the predictions with')
        self.register_load_state_dict_pre_hook(_leave_out_other_terms)

    def forward(
        self,
        predictions: Predictions,
        encoder: tuple[Tensor, Tensor],
        targets: Targets,
        num_denoising: int = 0,
        num_groups: int = 0,
    ) -> dict[str, Tensor]:
        """Loss terms, times their weights.

        Args:
            predictions: Predictions for N denoising queries and Q matching queries of B images.
            encoder: Class logits (B, Q, C) and boxes (B, Q, 4) of the selected encoder queries.
            targets: The objects.
            num_denoising: The number N of denoising queries, which come first. No loss reads those
                that follow the last group.
            num_groups: Number of denoising groups.

        Returns:
            Each term of each of its sets, (). The set's prefix and the term make the name:
            ``loss_cls`` is that of the last layer, ``d0.loss_cls`` that of the first,
            ``dn.d0.loss_cls`` that of the first for denoising queries.
        """
        sets = PredictionSets.stack(predictions, encoder, num_denoising)
        matching = slice(num_denoising, None)
        matcher = self.late_matcher if self.late else self.matcher
        found = matcher.match(sets.scores[:, :, matching], sets.boxes[:, :, matching], targets)
        # There is time for it until the costs reach the host.
        noised = denoising_pairs(targets, num_groups)
        own = found() if callable(found) else found
        return self._terms(_matched_sets(sets, own, noised, targets, num_denoising, num_groups))

    def auxiliary(self, view: EncoderView | None) -> dict[str, Tensor]:
        """Values () of the auxiliary terms by name; none without such terms.

        Raises:
            ValueError: There are such terms, and the model shows nothing to them.
        """
        if self.auxiliary_terms and view is None:
            raise UserError(
                f'criterion.terms has {", ".join(self.auxiliary_terms)}, which needs the '
                "encoder's tokens: only a model of type DEIMDetector gives them"
            )
        return {name: term(view) for name, term in self.auxiliary_terms.items()}

    def _terms(self, matched: Mapping[str, MatchedSets]) -> dict[str, Tensor]:
        """Values of all terms by name, for sets with each kind of pairs.

        Raises:
            ValueError: A term has another number of values than it has sets.
        """
        losses = {}
        for name, term in self.terms.items():
            of_kind = matched[term.pairs]
            values, prefixes = term(of_kind), of_kind.prefixes(term.sets(of_kind))
            if values.shape != (len(prefixes),):
                raise UserError(
                    f'{name} needs {len(prefixes)} values, one for each of {prefixes}, got the '
                    f'shape {tuple(values.shape)}: its loss must keep the sets of predictions apart'
                )
            losses.update(
                {f'{prefix}{name}': v for prefix, v in zip(prefixes, values.unbind(), strict=True)}
            )
        # In the log, the terms of denoising queries come last.
        return dict(sorted(losses.items(), key=lambda item: item[0].startswith('dn.')))


def _matched_sets(
    sets: PredictionSets,
    own: Pairs,
    noised: Pairs,
    targets: Targets,
    num_denoising: int,
    num_groups: int,
) -> dict[str, MatchedSets]:
    """The sets with each kind of pairs; further arguments as those of :class:`SetCriterion`.

    Args:
        sets: The predictions.
        own: Own pairs of the matching queries of each set.
        noised: Pairs of the denoising queries.
        targets: The objects.
        num_denoising: Number of denoising queries.
        num_groups: Number of denoising groups.
    """
    _, images, queries, _ = sets.scores.shape
    union = union_set(own, queries - num_denoising)
    noised_sets = [f'dn.{prefix}' for prefix in sets.prefixes[:-1]]
    pairs = dict(own=[own.from_query(num_denoising)], union=[union.from_query(num_denoising)])
    if len(noised):
        several = own.sets is not None
        pairs['own'].append(noised.of_each_set(len(noised_sets)) if several else noised)
        pairs['union'].append(noised)

    group = 2 * targets.max_count
    counts = [targets.total, images * group - targets.total]
    counts += [len(union), images * (queries - num_denoising) - len(union)]
    shape = images, queries, targets.max_count
    places, counts = to_device([*pairs.values()], counts, shape, sets.scores.device)
    # Distributed training averages the gradients of the ranks. With sums over a rank divided by the
    # mean count, the average is the gradient of the joint batch.
    counts = reduce_mean(counts)
    objects, _, paired, _ = counts.clamp(min=1)
    of_group, of_union = counts.split(2)

    denoising = dict(
        prefixes=noised_sets,
        queries=slice(num_groups * group),
        normaliser=objects * num_groups,
        counts=of_group * num_groups,
    )
    matching = dict(prefixes=sets.prefixes, queries=slice(num_denoising, None), counts=of_union)
    result = {}
    for kind, normaliser, of_kind in zip(pairs, (objects, paired), places, strict=True):
        # Without objects there are no denoising queries.
        parts = zip(pairs[kind], (dict(matching, normaliser=normaliser), denoising), strict=False)
        parts = [Part(num_pairs=len(found), **part) for found, part in parts]
        result[kind] = MatchedSets(sets, of_kind, targets, parts)
    return result


def _built_matcher(config: dict) -> Any:
    matcher = TASK_UTILS.build(config)
    if not hasattr(matcher, 'match'):
        raise UserTypeError(
            f'{type(matcher).__name__} cannot match for criterion: it has no method match(scores, '
            "boxes, targets) for all sets at once; mmdet's HungarianAssigner is HungarianMatcher "
            'here'
        )
    return matcher


@MODELS.register_module()
class DFINECriterion(SetCriterion):
    """:class:`SetCriterion` with the terms of D-FINE (arXiv 2410.13842).

    The union set trains boxes and distributions. All layers have ``loss_fgl``; all but the last
    have ``loss_ddf``.
    """

    default_terms = merged(
        SetCriterion.default_terms,
        dict(
            loss_bbox=dict(pairs='union'),
            loss_iou=dict(pairs='union'),
            loss_fgl=dict(
                type='DistributionTerm',
                pairs='union',
                loss=dict(type='FineGrainedLocalizationLoss', loss_weight=0.15),
            ),
            loss_ddf=dict(
                type='DistillationTerm',
                pairs='union',
                loss=dict(type='DecoupledDistillationFocalLoss', loss_weight=1.5),
            ),
        ),
    )


def _leave_out_other_terms(
    criterion: SetCriterion, state_dict: dict[str, Tensor], prefix: str, *args
) -> None:
    """Before loading, leave out what the terms of another training have learnt.

    A detector that was trained by distillation is used by the config of its network, which has no
    such term. Strict loading, as for export, would refuse the checkpoint.
    """
    own = criterion.state_dict(prefix=prefix)
    for name in [name for name in state_dict if name.startswith(prefix) and name not in own]:
        del state_dict[name]
