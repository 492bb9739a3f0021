from .decoupled_distillation_focal_loss import DecoupledDistillationFocalLoss
from .dfine_criterion import DFINECriterion
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
from .set_criterion import SetCriterion

__all__ = [
    'DFINECriterion',
    'DecoupledDistillationFocalLoss',
    'FineGrainedLocalizationLoss',
    'MatchabilityAwareLoss',
    'SetCriterion',
    'VarifocalQualityLoss',
    'fine_grained_localization_loss',
    'matchability_aware_loss',
    'varifocal_quality_loss',
]
