from .dfine_head import DFINEHead

__all__ = ['DFINEHead']
