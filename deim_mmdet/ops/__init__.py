from .deformable_attention import SAMPLING_METHODS, deformable_attention

__all__ = ['SAMPLING_METHODS', 'deformable_attention']
