from .faults import RunFault
from .hooks import (
    AgreementHook,
    AtomicCheckpointHook,
    CheckpointCheckHook,
    CompileHook,
    CUDAGraphHook,
    DeferredRuntimeInfoHook,
    DenseO2OScheduleHook,
    DerivedSeedHook,
    EMARestartHook,
    ExpWarmupEMA,
    ExpWarmupEMAHook,
    NonFiniteError,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteLossHook,
    NonFiniteWeightError,
    ResumableEarlyStoppingHook,
    UniqueNameVisualizationHook,
)
from .image_size import apply_image_size, keep_aspect_ratio, set_image_size
from .optimizers import CpuAmpOptimWrapper, RuleOptimWrapperConstructor
from .recipe import PublishedRecipe, Recipe, derive_recipe
from .runner import DEIMRunner
from .schedulers import FlatCosineLR

__all__ = [
    'AgreementHook',
    'AtomicCheckpointHook',
    'CUDAGraphHook',
    'CheckpointCheckHook',
    'CompileHook',
    'CpuAmpOptimWrapper',
    'DEIMRunner',
    'DeferredRuntimeInfoHook',
    'DenseO2OScheduleHook',
    'DerivedSeedHook',
    'EMARestartHook',
    'ExpWarmupEMA',
    'ExpWarmupEMAHook',
    'FlatCosineLR',
    'NonFiniteError',
    'NonFiniteGradientError',
    'NonFiniteLossError',
    'NonFiniteLossHook',
    'NonFiniteWeightError',
    'PublishedRecipe',
    'Recipe',
    'ResumableEarlyStoppingHook',
    'RuleOptimWrapperConstructor',
    'RunFault',
    'UniqueNameVisualizationHook',
    'apply_image_size',
    'derive_recipe',
    'keep_aspect_ratio',
    'set_image_size',
]
