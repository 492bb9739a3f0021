from .dfine_head import DFINEHead
from .postprocess import TopKPostprocess
from .query_selection_head import QuerySelectionHead
from .rtdetr_head import RTDETRHead

__all__ = ['DFINEHead', 'QuerySelectionHead', 'RTDETRHead', 'TopKPostprocess']
