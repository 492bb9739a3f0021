"""Dense head of RT-DETR, RT-DETRv2 and DEIM-RT-DETRv2."""

from mmdet.registry import MODELS

from .query_selection_head import QuerySelectionHead


@MODELS.register_module()
class RTDETRHead(QuerySelectionHead):
    """Head of RT-DETRv2 (arXiv 2407.17140), with MAL of DEIM (arXiv 2412.04234) by default.

    With the same number of points on every level it is the head of RT-DETR (arXiv 2304.08069). It
    projects all levels. Arguments are those of :class:`QuerySelectionHead`.

    Example:
        >>> bbox_head = dict(
        ...     type='RTDETRHead', num_classes=80, in_channels=[256, 256, 256],
        ...     decoder=dict(num_points=[4, 4, 4], num_layers=3))
    """

    default_types = dict(
        QuerySelectionHead.default_types, decoder='RTDETRDecoder', criterion='SetCriterion'
    )
    project_all = True
