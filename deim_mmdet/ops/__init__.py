from .deformable_attention import SAMPLING_METHODS, deformable_attention, pure_pytorch

__all__ = ['SAMPLING_METHODS', 'deformable_attention', 'pure_pytorch']
