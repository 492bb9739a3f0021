from .agreement_hook import AgreementHook
from .atomic_checkpoint_hook import AtomicCheckpointHook
from .checkpoint_check_hook import CheckpointCheckHook
from .compile_hook import CompileHook
from .cuda_graph_hook import CUDAGraphHook
from .deferred_runtime_info_hook import DeferredRuntimeInfoHook
from .dense_o2o_schedule_hook import DenseO2OScheduleHook
from .derived_seed_hook import DerivedSeedHook
from .distillation_weight_hook import DistillationWeightHook
from .ema_restart_hook import EMARestartHook
from .exp_warmup_ema import ExpWarmupEMA, ExpWarmupEMAHook
from .fused_test_hook import FusedTestHook
from .non_finite_loss_hook import NonFiniteLossHook
from .resumable_early_stopping_hook import ResumableEarlyStoppingHook
from .unique_name_visualization_hook import UniqueNameVisualizationHook

__all__ = [
    'AgreementHook',
    'AtomicCheckpointHook',
    'CUDAGraphHook',
    'CheckpointCheckHook',
    'CompileHook',
    'DeferredRuntimeInfoHook',
    'DenseO2OScheduleHook',
    'DerivedSeedHook',
    'DistillationWeightHook',
    'EMARestartHook',
    'ExpWarmupEMA',
    'ExpWarmupEMAHook',
    'FusedTestHook',
    'NonFiniteLossHook',
    'ResumableEarlyStoppingHook',
    'UniqueNameVisualizationHook',
]
