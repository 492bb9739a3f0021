"""Dense head of D-FINE and DEIM-D-FINE."""

from collections.abc import Sequence

from mmdet.registry import MODELS

from ..layers.dfine_decoder import DFINEDecoder
from ..losses import DFINECriterion
from .query_selection_head import SCORE_BIAS, QuerySelectionHead


@MODELS.register_module()
class DFINEHead(QuerySelectionHead):
    """Head of D-FINE (arXiv 2410.13842), with the losses of DEIM (arXiv 2412.04234) by default.

    Args:
        num_classes: C.
        in_channels: Channels of the levels, finest first.
        num_points: Sampling points of the cross-attention on each level.
        embed_dims: Width D of the decoder; levels of another width are projected.
        num_layers: Decoder layers.
        num_heads: Attention heads.
        ffn_channels: Width of the decoder's FFNs.
        num_queries: Matching queries an image.
        reg_max: Bins of a side's distribution less one.
        reg_scale: Steepness of the bins' distances; larger reaches farther.
        act: Activation of decoder FFNs and MLPs: SiLU in DEIM, ReLU in D-FINE.
        denoising: Arguments of :class:`DenoisingQueryGenerator`, or ``None`` for no denoising.
        matcher: Config of the matcher.
        loss_cls: Classification loss with (labels, quality) targets.
        loss_bbox: Loss on normalised (cx, cy, w, h).
        loss_iou: Loss on (x1, y1, x2, y2).
        loss_fgl: Loss on distributions.
        loss_ddf: Distillation between layers.
        train_cfg: None or empty; mmdet's detectors pass it.
        test_cfg: ``max_per_img``, the detections kept of an image (300).
        init_cfg: See :class:`mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        num_points: Sequence[int],
        embed_dims: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_channels: int = 1024,
        num_queries: int = 300,
        reg_max: int = 32,
        reg_scale: float = 4.0,
        act: str = 'SiLU',
        denoising: dict | None = dict(num_queries=100, label_noise=0.5, box_noise=1.0),
        matcher: dict = dict(type='HungarianMatcher'),
        loss_cls: dict = dict(type='MatchabilityAwareLoss', gamma=1.5, loss_weight=1.0),
        loss_bbox: dict = dict(type='L1Loss', loss_weight=5.0),
        loss_iou: dict = dict(type='GIoULoss', eps=1e-9, loss_weight=2.0),
        loss_fgl: dict = dict(type='FineGrainedLocalizationLoss', loss_weight=0.15),
        loss_ddf: dict = dict(type='DecoupledDistillationFocalLoss', loss_weight=1.5),
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
            project_all=False,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        if reg_max % 2:
            raise ValueError(f'DFINEHead needs an even reg_max, got {reg_max}')
        self.decoder = DFINEDecoder(
            num_classes=num_classes,
            embed_dims=embed_dims,
            num_layers=num_layers,
            num_heads=num_heads,
            ffn_channels=ffn_channels,
            num_points=num_points,
            reg_max=reg_max,
            reg_scale=reg_scale,
            act=act,
            score_bias=SCORE_BIAS,
        )
        self.criterion = DFINECriterion(matcher, loss_cls, loss_bbox, loss_iou, loss_fgl, loss_ddf)

    def _criterion_inputs(self) -> dict:
        decoder = self.decoder
        return dict(bins=(decoder.reg_max, decoder.up, decoder.reg_scale))
