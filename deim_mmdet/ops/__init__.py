from .deformable_attention import SAMPLING_METHODS, deformable_attention, pure_pytorch
from .multi_scale_deformable_attention import (
    FastDeformableAttentionHook,
    FastMultiScaleDeformableAttention,
    use_fast_deformable_attention,
)

__all__ = [
    'SAMPLING_METHODS',
    'FastDeformableAttentionHook',
    'FastMultiScaleDeformableAttention',
    'deformable_attention',
    'pure_pytorch',
    'use_fast_deformable_attention',
]
