from .decoupled_distillation_focal_loss import DecoupledDistillationFocalLoss
from .fine_grained_localization_loss import (
    FineGrainedLocalizationLoss,
    fine_grained_localization_loss,
)
from .quality_losses import (
    MatchabilityAwareLoss,
    VarifocalQualityLoss,
    matchability_aware_loss,
    varifocal_quality_loss,
)
from .set_criterion import DFINECriterion

__all__ = [
    'DFINECriterion',
    'DecoupledDistillationFocalLoss',
    'FineGrainedLocalizationLoss',
    'MatchabilityAwareLoss',
    'VarifocalQualityLoss',
    'fine_grained_localization_loss',
    'matchability_aware_loss',
    'varifocal_quality_loss',
]
