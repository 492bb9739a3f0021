from .deformable_attention import deformable_attention

__all__ = ['deformable_attention']
