from .auxiliary_term import AuxiliaryTerm, EncoderView
from .decoupled_distillation_focal_loss import DecoupledDistillationFocalLoss
from .distribution_terms import DistillationTerm, DistributionTerm
from .fine_grained_localization_loss import (
    FineGrainedLocalizationLoss,
    fine_grained_localization_loss,
)
from .matched_sets import MatchedSets, PredictionSets
from .paired_giou_loss import PairedGIoULoss
from .quality_losses import (
    MatchabilityAwareLoss,
    VarifocalQualityLoss,
    matchability_aware_loss,
    varifocal_quality_loss,
)
from .set_criterion import DFINECriterion, SetCriterion
from .teacher_distillation import TeacherDistillation, TimmTeacher
from .terms import ClassificationTerm, DistanceTerm, LossTerm, OverlapTerm

__all__ = [
    'AuxiliaryTerm',
    'ClassificationTerm',
    'DFINECriterion',
    'DecoupledDistillationFocalLoss',
    'DistanceTerm',
    'DistillationTerm',
    'DistributionTerm',
    'EncoderView',
    'FineGrainedLocalizationLoss',
    'LossTerm',
    'MatchabilityAwareLoss',
    'MatchedSets',
    'OverlapTerm',
    'PairedGIoULoss',
    'PredictionSets',
    'SetCriterion',
    'TeacherDistillation',
    'TimmTeacher',
    'VarifocalQualityLoss',
    'fine_grained_localization_loss',
    'matchability_aware_loss',
    'varifocal_quality_loss',
]
