from .dfine_head import DFINEHead
from .postprocess import TopKPostprocess
from .query_selection_head import QuerySelectionHead, as_instances, spanned_pixels
from .rtdetr_head import RTDETRHead

__all__ = [
    'DFINEHead',
    'QuerySelectionHead',
    'RTDETRHead',
    'TopKPostprocess',
    'as_instances',
    'spanned_pixels',
]
