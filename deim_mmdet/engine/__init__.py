from .hooks import (
    AtomicCheckpointHook,
    CheckpointCheckHook,
    DenseO2OScheduleHook,
    DerivedSeedHook,
    EMARestartHook,
    ExpWarmupEMA,
    ExpWarmupEMAHook,
    NonFiniteLossError,
    NonFiniteLossHook,
    ResumableEarlyStoppingHook,
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
    'DerivedSeedHook',
    'EMARestartHook',
    'ExpWarmupEMA',
    'ExpWarmupEMAHook',
    'FlatCosineLR',
    'NonFiniteLossError',
    'NonFiniteLossHook',
    'PublishedRecipe',
    'Recipe',
    'ResumableEarlyStoppingHook',
    'RuleOptimWrapperConstructor',
    'derive_recipe',
]
