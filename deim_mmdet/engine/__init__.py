from .hooks import (
    AtomicCheckpointHook,
    CheckpointCheckHook,
    DenseO2OScheduleHook,
    ExpWarmupEMA,
    ExpWarmupEMAHook,
    NonFiniteLossError,
    NonFiniteLossHook,
)
from .optimizers import CpuAmpOptimWrapper, RuleOptimWrapperConstructor
from .recipe import PublishedRecipe, Recipe, derive_recipe
from .runner import DEIMRunner
from .schedulers import FlatCosineLR

__all__ = [
    'AtomicCheckpointHook',
    'CheckpointCheckHook',
    'CpuAmpOptimWrapper',
    'DEIMRunner',
    'DenseO2OScheduleHook',
    'ExpWarmupEMA',
    'ExpWarmupEMAHook',
    'FlatCosineLR',
    'NonFiniteLossError',
    'NonFiniteLossHook',
    'PublishedRecipe',
    'Recipe',
    'RuleOptimWrapperConstructor',
    'derive_recipe',
]
