"""Dense head of D-FINE and DEIM-D-FINE: query selection, decoder, losses and detections."""

import math
from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..layers.basic import ConvNorm
from ..layers.denoising import DenoisingQueries, DenoisingQueryGenerator
from ..layers.dfine_decoder import DecoderPredictions, DFINEDecoder, full_precision
from ..layers.query_selection import QuerySelection, SelectedQueries
from ..losses import DFINECriterion
from ..task_modules import Targets


@MODELS.register_module()
class DFINEHead(BaseModule):
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
        train_cfg: Not used; mmdet's detectors pass it.
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
        super().__init__(init_cfg)
        if len(in_channels) != len(num_points):
            raise ValueError(
                'DFINEHead needs num_points of each level: got '
                f'{len(in_channels)} in_channels and {len(num_points)} num_points'
            )
        if reg_max % 2 or embed_dims % (4 * num_heads):
            raise ValueError(
                'DFINEHead needs an even reg_max and an embed_dims divisible by 4 · num_heads, '
                f'got reg_max={reg_max}, embed_dims={embed_dims}, num_heads={num_heads}'
            )
        # A score of 0.01 for everything at the start (focal loss, arXiv 1708.02002).
        score_bias = -math.log((1 - 0.01) / 0.01)
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.max_per_img = (test_cfg or {}).get('max_per_img', 300)
        self.input_proj = nn.ModuleList(
            nn.Identity() if channels == embed_dims else ConvNorm(channels, embed_dims, 1)
            for channels in in_channels
        )
        self.query_selection = QuerySelection(num_classes, embed_dims, num_queries, act)
        nn.init.constant_(self.query_selection.score.bias, score_bias)
        self.denoising = (
            None
            if denoising is None
            else DenoisingQueryGenerator(num_classes, embed_dims, **denoising)
        )
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
            score_bias=score_bias,
        )
        self.criterion = DFINECriterion(matcher, loss_cls, loss_bbox, loss_iou, loss_fgl, loss_ddf)

    def _decode(
        self, feats: Sequence[Tensor], denoising: DenoisingQueries | None = None
    ) -> tuple[SelectedQueries, DecoderPredictions]:
        """Selected queries, and the predictions for denoising (first) and matching queries."""
        feats = [proj(feat) for proj, feat in zip(self.input_proj, feats, strict=True)]
        spatial_shapes = [(int(feat.shape[2]), int(feat.shape[3])) for feat in feats]
        memory = torch.cat([feat.flatten(2).transpose(1, 2) for feat in feats], dim=1)
        selected = self.query_selection(memory, spatial_shapes)
        content, references = selected.content.detach(), selected.box_logits.detach()
        mask = None
        if denoising is not None:
            mask = denoising.attention_mask(content.shape[1])
            content = torch.cat([denoising.content, content], dim=1)
            references = torch.cat([denoising.reference_logits, references], dim=1)
        return selected, self.decoder(content, references, memory, spatial_shapes, mask)

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, C) and (cx, cy, w, h) boxes (B, Q, 4) in [0, 1] of the last layer."""
        predictions = self._decode(feats)[1]
        return predictions.scores[-1], predictions.boxes[-1]

    def loss(self, feats: Sequence[Tensor], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Loss terms of a batch of levels (B, C_l, H_l, W_l); see :class:`DFINECriterion`."""
        labels = [sample.gt_instances.labels for sample in batch_data_samples]
        boxes = [_normalised_boxes(sample) for sample in batch_data_samples]
        queries = None if self.denoising is None else self.denoising(labels, boxes)
        selected, predictions = self._decode(feats, queries)
        predictions = predictions.in_full_precision()
        denoising, num_groups = None, 0
        if queries is not None:
            denoising, predictions = predictions.split(queries.content.shape[1])
            num_groups = queries.num_groups
        with torch.autocast(predictions.boxes.device.type, enabled=False):
            losses = self.criterion(
                matching=predictions,
                encoder=(
                    full_precision(selected.scores),
                    full_precision(selected.box_logits).sigmoid(),
                ),
                denoising=denoising,
                num_groups=num_groups,
                targets=Targets.from_lists(labels, boxes),
                bins=(self.decoder.reg_max, self.decoder.up, self.decoder.reg_scale),
            )
        if self.denoising is not None and queries is None:
            # Every parameter takes part in the gradient exchange, objects or not.
            losses['loss_cls'] = losses['loss_cls'] + self.denoising.embedding.weight.sum() * 0
        return losses

    def predict(
        self, feats: Sequence[Tensor], batch_data_samples: SampleList, rescale: bool = True
    ) -> InstanceList:
        """The ``max_per_img`` best (query, class) pairs of each image.

        Args:
            feats: Levels (B, C_l, H_l, W_l).
            batch_data_samples: Their data samples.
            rescale: Give boxes in pixels of the original image rather than of the input.

        Returns:
            Of each image ``bboxes`` (N, 4) as (x1, y1, x2, y2) in pixels, ``scores`` (N,) and
            ``labels`` (N,), best first.
        """
        all_scores, all_boxes = self(feats)
        results = []
        for scores, boxes, sample in zip(all_scores, all_boxes, batch_data_samples, strict=True):
            probabilities = scores.float().sigmoid().flatten()
            top, index = probabilities.topk(min(self.max_per_img, len(probabilities)))
            height, width = _input_shape(sample)
            bboxes = bbox_cxcywh_to_xyxy(boxes[index // self.num_classes].float())
            bboxes = bboxes * bboxes.new_tensor([width, height, width, height])
            if rescale:
                bboxes = bboxes / bboxes.new_tensor(sample.scale_factor).repeat(2)
            results.append(InstanceData(bboxes=bboxes, scores=top, labels=index % self.num_classes))
        return results


def _input_shape(sample) -> tuple[int, int]:
    """Height and width that the feature maps span: the batch's, padding included."""
    return tuple(sample.metainfo.get('batch_input_shape', sample.img_shape))[:2]


def _normalised_boxes(sample) -> Tensor:
    """Boxes (n, 4) of a sample's objects as (cx, cy, w, h) in [0, 1]."""
    height, width = _input_shape(sample)
    boxes = sample.gt_instances.bboxes
    return bbox_xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height]))
