from .dfine_head import DFINEHead
from .rtdetr_head import RTDETRHead

__all__ = ['DFINEHead', 'RTDETRHead']
