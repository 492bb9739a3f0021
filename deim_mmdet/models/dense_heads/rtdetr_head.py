"""Dense head of RT-DETR, RT-DETRv2 and DEIM-RT-DETRv2."""

from collections.abc import Sequence

from deim_mmdet.ops import SAMPLING_METHODS

from mmdet.registry import MODELS

from ..layers.rtdetr_decoder import RTDETRDecoder
from ..losses import SetCriterion
from .query_selection_head import SCORE_BIAS, QuerySelectionHead


@MODELS.register_module()
class RTDETRHead(QuerySelectionHead):
    """Head of RT-DETRv2 (arXiv 2407.17140), with MAL of DEIM (arXiv 2412.04234) by default.

    RT-DETR (arXiv 2304.08069) is the case of as many points on every level.

    Args:
        num_classes: C.
        in_channels: Channels of the levels, finest first; all are projected to D.
        num_points: Sampling points of the cross-attention on each level.
        embed_dims: Width D of the decoder.
        num_layers: Decoder layers that are trained.
        num_eval_layers: The first layers that are used in evaluation. Default: all.
        num_heads: Attention heads.
        ffn_channels: Width of the decoder's FFNs.
        num_queries: Matching queries an image.
        query_position_channels: Hidden widths of the MLP that makes a query's position of its box:
            (D, D) in DEIM, (2 · D,) in RT-DETR.
        sampling: 'default' (bilinear) or 'discrete' (nearest pixel, the offsets frozen), which
            RT-DETRv2 fine-tunes for devices without ``grid_sample``.
        act: Activation of decoder FFNs and MLPs: SiLU in DEIM, ReLU in RT-DETR.
        denoising: Arguments of :class:`DenoisingQueryGenerator`, or ``None`` for no denoising.
        matcher: Config of the matcher.
        loss_cls: Classification loss with (labels, quality) targets.
        loss_bbox: Loss on normalised (cx, cy, w, h).
        loss_iou: Loss on (x1, y1, x2, y2).
        train_cfg: None or empty; mmdet's detectors pass it.
        test_cfg: ``max_per_img``, the detections kept of an image (300).
        init_cfg: See :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: The levels, widths or numbers of layers don't agree, or there is no such
            sampling.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        num_points: Sequence[int],
        embed_dims: int = 256,
        num_layers: int = 6,
        num_eval_layers: int | None = None,
        num_heads: int = 8,
        ffn_channels: int = 1024,
        num_queries: int = 300,
        query_position_channels: Sequence[int] = (256, 256),
        sampling: str = 'default',
        act: str = 'SiLU',
        denoising: dict | None = dict(num_queries=100, label_noise=0.5, box_noise=1.0),
        matcher: dict = dict(type='HungarianMatcher'),
        loss_cls: dict = dict(type='MatchabilityAwareLoss', gamma=1.5, loss_weight=1.0),
        loss_bbox: dict = dict(type='L1Loss', loss_weight=5.0),
        loss_iou: dict = dict(type='GIoULoss', eps=1e-9, loss_weight=2.0),
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            num_points=num_points,
            embed_dims=embed_dims,
            num_heads=num_heads,
            num_queries=num_queries,
            act=act,
            denoising=denoising,
            project_all=True,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        num_eval_layers = num_layers if num_eval_layers is None else num_eval_layers
        if not 1 <= num_eval_layers <= num_layers:
            raise ValueError(
                f'RTDETRHead: num_eval_layers={num_eval_layers} must be within the '
                f'num_layers={num_layers} that are trained'
            )
        if sampling not in SAMPLING_METHODS:
            raise ValueError(
                f'RTDETRHead: sampling must be one of {SAMPLING_METHODS}, got {sampling!r}'
            )
        self.decoder = RTDETRDecoder(
            num_classes=num_classes,
            embed_dims=embed_dims,
            num_layers=num_layers,
            num_eval_layers=num_eval_layers,
            num_heads=num_heads,
            ffn_channels=ffn_channels,
            num_points=num_points,
            query_position_channels=query_position_channels,
            method=sampling,
            act=act,
            score_bias=SCORE_BIAS,
        )
        self.criterion = SetCriterion(matcher, loss_cls, loss_bbox, loss_iou)
