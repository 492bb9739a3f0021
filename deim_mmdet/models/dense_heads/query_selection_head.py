"""What the heads of D-FINE and RT-DETR share: selection, denoising, losses and detections."""

import math
from collections.abc import Sequence

import torch
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..layers.basic import ConvNorm, to_tokens
from ..layers.decoder import DecoderPredictions, full_precision
from ..layers.denoising import DenoisingQueries, DenoisingQueryGenerator
from ..layers.query_selection import QuerySelection, SelectedQueries
from ..losses import SetCriterion
from ..task_modules import Targets

# Scores of 0.01 for everything at the start (focal loss, arXiv 1708.02002).
SCORE_BIAS = -math.log((1 - 0.01) / 0.01)


class QuerySelectionHead(BaseModule):
    """Head of a DETR whose queries are the encoder tokens with the largest scores.

    A subclass builds the decoder and the criterion.

    Args:
        num_classes: C.
        in_channels: Channels of the levels, finest first.
        num_points: Sampling points of the cross-attention on each level.
        embed_dims: Width D of the decoder.
        num_heads: Attention heads.
        num_queries: Matching queries an image.
        act: Activation of the MLPs.
        denoising: Arguments of :class:`DenoisingQueryGenerator`, or ``None`` for no denoising.
        project_all: Project levels that have width D already, too.
        train_cfg: None or empty; mmdet's detectors pass it.
        test_cfg: ``max_per_img``, the detections kept of an image (300).
        init_cfg: See :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: The levels or widths don't agree, or there is nothing of a setting's name.
    """

    decoder: nn.Module
    criterion: SetCriterion

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        num_points: Sequence[int],
        embed_dims: int,
        num_heads: int,
        num_queries: int,
        act: str,
        denoising: dict | None,
        project_all: bool,
        train_cfg: dict | None,
        test_cfg: dict | None,
        init_cfg: dict | None,
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        if len(in_channels) != len(num_points):
            raise ValueError(
                f'{name} needs num_points of each level: got '
                f'{len(in_channels)} in_channels and {len(num_points)} num_points'
            )
        if embed_dims % (4 * num_heads):
            raise ValueError(
                f'{name} needs an embed_dims divisible by 4 · num_heads, got '
                f'embed_dims={embed_dims}, num_heads={num_heads}'
            )
        for name_of_cfg, cfg, known in (
            ('train_cfg', train_cfg, set()),
            ('test_cfg', test_cfg, {'max_per_img'}),
        ):
            unknown = sorted(set(cfg or ()) - known)
            if unknown:
                raise ValueError(
                    f'{name} reads no {", ".join(unknown)} of model.{name_of_cfg}; it reads '
                    f'{", ".join(known) or "nothing"} there'
                )
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.max_per_img = (test_cfg or {}).get('max_per_img', 300)
        self.input_proj = nn.ModuleList(
            nn.Identity()
            if channels == embed_dims and not project_all
            else ConvNorm(channels, embed_dims, 1)
            for channels in in_channels
        )
        for conv in self.input_proj.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.xavier_uniform_(conv.weight)
        self.query_selection = QuerySelection(num_classes, embed_dims, num_queries, act)
        nn.init.constant_(self.query_selection.score.bias, SCORE_BIAS)
        self.denoising = (
            None
            if denoising is None
            else DenoisingQueryGenerator(num_classes, embed_dims, **denoising)
        )
        self.register_load_state_dict_pre_hook(self._refuse_other_classes)

    @staticmethod
    def _refuse_other_classes(
        head: 'QuerySelectionHead', state_dict: dict, prefix: str, *args
    ) -> None:
        """Look, before parameters are loaded, whether the class layers are for as many classes.

        mmengine's loader, which ``DetInferencer`` uses, goes on without parameters of other shapes.

        Raises:
            ValueError: The parameters are those of another number of classes.
        """
        scores = state_dict.get(f'{prefix}query_selection.score.bias')
        if scores is not None and len(scores) != head.num_classes:
            raise ValueError(
                f'the checkpoint was trained for {len(scores)} classes, but '
                f'model.bbox_head.num_classes={head.num_classes}: take the config that it was '
                'trained with'
            )

    def _decode(
        self,
        feats: Sequence[Tensor],
        denoising: DenoisingQueries | None = None,
        all_layers: bool = False,
    ) -> tuple[SelectedQueries, DecoderPredictions]:
        """Selected queries, and the predictions for denoising (first) and matching queries.

        Predictions are those of all decoder layers, or of the last one used in evaluation.
        """
        feats = [proj(feat) for proj, feat in zip(self.input_proj, feats, strict=True)]
        spatial_shapes = [(int(feat.shape[2]), int(feat.shape[3])) for feat in feats]
        memory = torch.cat([to_tokens(feat) for feat in feats], dim=1)
        selected = self.query_selection(memory, spatial_shapes)
        content, references = selected.content.detach(), selected.box_logits.detach()
        mask = None
        if denoising is not None:
            mask = denoising.attention_mask(content.shape[1])
            content = torch.cat([denoising.content, content], dim=1)
            references = torch.cat([denoising.reference_logits, references], dim=1)
        predictions = self.decoder(content, references, memory, spatial_shapes, mask, all_layers)
        return selected, predictions

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, C) and (cx, cy, w, h) boxes (B, Q, 4) in [0, 1] of the last layer."""
        predictions = self._decode(feats)[1]
        return predictions.scores[-1], predictions.boxes[-1]

    def _criterion_inputs(self) -> dict:
        """What a subclass's criterion wants beside predictions and targets."""
        return {}

    def loss(self, feats: Sequence[Tensor], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Loss terms of a batch of levels (B, C_l, H_l, W_l); see :class:`SetCriterion`."""
        labels = [sample.gt_instances.labels for sample in batch_data_samples]
        boxes = [_normalised_boxes(sample) for sample in batch_data_samples]
        queries = None if self.denoising is None else self.denoising(labels, boxes)
        selected, predictions = self._decode(feats, queries, all_layers=True)
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
                **self._criterion_inputs(),
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
