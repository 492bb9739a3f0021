from .atomic_checkpoint_hook import AtomicCheckpointHook
from .checkpoint_check_hook import CheckpointCheckHook
from .dense_o2o_schedule_hook import DenseO2OScheduleHook
from .exp_warmup_ema import ExpWarmupEMA, ExpWarmupEMAHook
from .non_finite_loss_hook import (
    NonFiniteError,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteLossHook,
    NonFiniteWeightError,
)

__all__ = [
    'AtomicCheckpointHook',
    'CheckpointCheckHook',
    'DenseO2OScheduleHook',
    'ExpWarmupEMA',
    'ExpWarmupEMAHook',
    'NonFiniteError',
    'NonFiniteGradientError',
    'NonFiniteLossError',
    'NonFiniteLossHook',
    'NonFiniteWeightError',
]
