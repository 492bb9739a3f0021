"""Dense head of D-FINE and DEIM-D-FINE."""

from mmdet.registry import MODELS

from .query_selection_head import QuerySelectionHead


@MODELS.register_module()
class DFINEHead(QuerySelectionHead):
    """Head of D-FINE (arXiv 2410.13842), with the losses of DEIM (arXiv 2412.04234) by default.

    Arguments are those of :class:`QuerySelectionHead`.

    Example:
        >>> bbox_head = dict(
        ...     type='DFINEHead', num_classes=80, in_channels=[256, 256, 256],
        ...     decoder=dict(num_points=[3, 6, 3], num_layers=4))
    """

    default_types = dict(
        QuerySelectionHead.default_types, decoder='DFINEDecoder', criterion='DFINECriterion'
    )
