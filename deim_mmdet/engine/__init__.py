from .dense_o2o_options import set_dense_o2o
from .faults import (
    NonFiniteError,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteWeightError,
    RunFault,
)
from .hooks import (
    AgreementHook,
    AtomicCheckpointHook,
    CheckpointCheckHook,
    CompileHook,
    CUDAGraphHook,
    DeferredRuntimeInfoHook,
    DenseO2OScheduleHook,
    DerivedSeedHook,
    DistillationWeightHook,
    EMARestartHook,
    ExpWarmupEMA,
    ExpWarmupEMAHook,
    NonFiniteLossHook,
    ResumableEarlyStoppingHook,
    UniqueNameVisualizationHook,
)
from .image_size import apply_image_size, keep_aspect_ratio, set_image_size
from .input_channels import set_input_channels
from .optimizers import CpuAmpOptimWrapper, RuleOptimWrapperConstructor
from .published_recipe import PublishedRecipe
from .recipe import Recipe, derive_recipe
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
    'DistillationWeightHook',
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
    'set_dense_o2o',
    'set_image_size',
    'set_input_channels',
]
