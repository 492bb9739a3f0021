"""What the heads of D-FINE and RT-DETR share: both are composed of registered parts."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import InstanceList
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ...utils.errors import UserError
from ..layers.attention import additive_mask
from ..layers.basic import project_levels, to_tokens
from ..layers.conv_norm import ConvNorm
from ..layers.denoising import DenoisingQueries
from ..layers.predictions import Predictions, full_precision
from ..layers.query_selection import SelectedQueries
from ..losses import EncoderView
from ..task_modules import Targets, input_shape
from .flat_config import composed


class QuerySelectionHead(BaseModule):
    """Head of a DETR whose queries are the encoder tokens with the largest scores.

    Features become tokens. ``query_selection`` picks queries from them. ``denoising`` adds noised
    objects in training. ``decoder`` refines both, ``criterion`` computes the losses, and
    ``postprocess`` makes detections. Each part is the config of a component in ``MODELS`` and holds
    all settings of the part. The default type may be left out. The head hands down what parts
    share: ``num_classes``, ``embed_dims`` and ``num_levels``.

    In version 0.1 settings stood in the head itself (``num_queries``, ``num_layers``, ``loss_cls``,
    ...). The head still takes them, with a warning that says where they are today.

    Args:
        num_classes: Number of categories, without background.
        in_channels: Channels of each feature level, finest first.
        embed_dims: Width of tokens and queries; levels of another width are projected to it.
        query_selection: See :class:`~deim_mmdet.models.layers.query_selection.QuerySelection`.
        denoising: See :class:`~deim_mmdet.models.layers.denoising.DenoisingQueryGenerator`;
            ``None`` for no denoising.
        decoder: See :class:`~deim_mmdet.models.layers.dfine_decoder.DFINEDecoder` and
            :class:`~deim_mmdet.models.layers.rtdetr_decoder.RTDETRDecoder`.
        criterion: See :class:`~deim_mmdet.models.losses.SetCriterion`.
        postprocess: See :class:`~deim_mmdet.models.dense_heads.postprocess.TopKPostprocess`.
        train_cfg: None or empty; mmdet's detectors pass it.
        test_cfg: Likewise; version 0.1 had ``max_per_img`` here.
        init_cfg: See :class:`mmengine.model.BaseModule`.
        flat: Settings of version 0.1.

    Raises:
        TypeError: A setting is unknown.
        ValueError: A part's config has what the head hands down, or settings don't fit.
    """

    #: Type of each part whose config names none.
    default_types: Mapping[str, str] = dict(
        query_selection='QuerySelection',
        denoising='DenoisingQueryGenerator',
        postprocess='TopKPostprocess',
    )
    #: Whether to project levels, too, that already have the width of the decoder.
    project_all = False

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        embed_dims: int = 256,
        query_selection: dict = dict(),
        denoising: dict | None = dict(),
        decoder: dict = dict(),
        criterion: dict = dict(),
        postprocess: dict = dict(),
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
        **flat,
    ) -> None:
        super().__init__(init_cfg)
        parts = dict(
            query_selection=query_selection,
            denoising=denoising,
            decoder=decoder,
            criterion=criterion,
            postprocess=postprocess,
        )
        name = type(self).__name__
        if train_cfg:
            raise UserError(f'{name} reads no {", ".join(train_cfg)} of model.train_cfg')
        flat.update(test_cfg or {})
        if flat:
            parts, how = composed(parts, flat)
            warnings.warn(f'{name} takes its parts as configs: {how}', stacklevel=2)
        self.num_classes = num_classes
        self.input_proj = nn.ModuleList(
            nn.Identity()
            if channels == embed_dims and not self.project_all
            else ConvNorm(channels, embed_dims, 1)
            for channels in in_channels
        )
        for conv in self.input_proj.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.xavier_uniform_(conv.weight)
        shared = dict(num_classes=num_classes, embed_dims=embed_dims)
        self.query_selection = self._built('query_selection', parts, **shared)
        self.denoising = self._built('denoising', parts, **shared)
        self.decoder = self._built('decoder', parts, **shared, num_levels=len(in_channels))
        self.criterion = self._built('criterion', parts)
        self.postprocess = self._built('postprocess', parts)
        self.register_load_state_dict_pre_hook(self._refuse_other_classes)

    def _built(self, part: str, configs: Mapping[str, dict | None], **shared) -> nn.Module | None:
        """Build a part with what the head hands down; None where its config is None."""
        config = configs[part]
        if config is None:
            return None
        twice = sorted(shared.keys() & config.keys())
        if twice:
            raise UserError(
                f'{type(self).__name__} hands {", ".join(twice)} down to its {part}: leave it out '
                f'of the config of {part}'
            )
        return MODELS.build({'type': self.default_types[part], **config, **shared})

    @property
    def num_queries(self) -> int:
        """Matching queries of an image."""
        return self.query_selection.num_queries

    @staticmethod
    def _refuse_other_classes(
        head: 'QuerySelectionHead', state_dict: dict, prefix: str, *args
    ) -> None:
        """Before loading, check that a checkpoint has the head's number of classes.

        The loader of mmengine 0.10.7, which ``DetInferencer`` uses, skips parameters of another
        shape.

        Raises:
            ValueError: The checkpoint has another number of classes.
        """
        scores = state_dict.get(f'{prefix}query_selection.score.bias')
        if scores is not None and len(scores) != head.num_classes:
            raise UserError(
                f'the checkpoint was trained for {len(scores)} classes, but '
                f'model.bbox_head.num_classes={head.num_classes}: take the config that it was '
                'trained with'
            )

    def decode(
        self,
        feats: Sequence[Tensor],
        denoising: DenoisingQueries | None = None,
        all_layers: bool = False,
    ) -> tuple[SelectedQueries, Predictions]:
        """Select queries and decode them, after the denoising queries if there are any.

        All decoder layers predict, or the last one that evaluation uses.
        """
        feats = project_levels(self, feats)
        spatial_shapes = [(int(feat.shape[2]), int(feat.shape[3])) for feat in feats]
        memory = torch.cat([to_tokens(feat) for feat in feats], dim=1)
        selected = self.query_selection(memory, spatial_shapes)
        content, references = selected.content.detach(), selected.box_logits.detach()
        mask = None
        if denoising is not None:
            mask = additive_mask(denoising.attention_mask(content.shape[1]), content)
            content = torch.cat([denoising.content, content], dim=1)
            references = torch.cat([denoising.reference_logits, references], dim=1)
        predictions = self.decoder(content, references, memory, spatial_shapes, mask, all_layers)
        return selected, predictions

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, C) and (cx, cy, w, h) boxes (B, Q, 4) in [0, 1] of the last layer."""
        predictions = self.decode(feats)[1]
        return predictions.scores[-1], predictions.boxes[-1]

    def loss(
        self,
        feats: Sequence[Tensor],
        batch_data_samples: SampleList,
        view: EncoderView | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms of a batch, of levels (B, C_l, H_l, W_l); see :class:`SetCriterion`.

        Auxiliary terms need the view of the encoder.
        """
        targets, queries = self.prepare(batch_data_samples, feats[0].device)
        selected, predictions = self.decode(feats, queries, all_layers=True)
        return self.losses(
            selected.scores, selected.box_logits, predictions, queries, targets, view
        )

    def prepare(
        self, batch_data_samples: SampleList, device: torch.device
    ) -> tuple[Targets, DenoisingQueries | None]:
        """The objects of a batch, and denoising queries made from them if there are any."""
        targets = Targets.from_samples(batch_data_samples, device)
        return targets, None if self.denoising is None else self.denoising(targets)

    def losses(
        self,
        encoder_scores: Tensor,
        encoder_box_logits: Tensor,
        predictions: Predictions,
        queries: DenoisingQueries | None,
        targets: Targets,
        view: EncoderView | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms of what :meth:`decode` and :meth:`prepare` have given for a batch.

        Args:
            encoder_scores: (B, Q, C) class logits of the selected queries.
            encoder_box_logits: (B, Q, 4) their boxes before the sigmoid.
            predictions: Predictions of all layers for denoising and matching queries.
            queries: The denoising queries.
            targets: The objects.
            view: What auxiliary terms see.
        """
        denoising = {}
        if queries is not None:
            denoising = dict(num_denoising=queries.content.shape[1], num_groups=queries.num_groups)
        with torch.autocast(encoder_scores.device.type, enabled=False):
            losses = self.criterion(
                predictions.in_full_precision(),
                (full_precision(encoder_scores), full_precision(encoder_box_logits).sigmoid()),
                targets,
                **denoising,
            )
        if self.denoising is not None and (queries is None or not queries.num_real):
            # The gradient exchange between ranks needs every parameter, objects or not.
            name = next(iter(losses))
            losses[name] = losses[name] + self.denoising.embedding.weight.sum() * 0
        # In the precision of the network, as the encoder's tokens are.
        return {**losses, **self.criterion.auxiliary(view)}

    def detect(self, feats: Sequence[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best detections of a batch, without a read by the host.

        Args:
            feats: Levels (B, C_l, H_l, W_l).
            sizes: (B, 2) width and height of each image, in whose pixels boxes are returned.

        Returns:
            Labels (B, N), boxes (B, N, 4) and scores (B, N); see
            :class:`~deim_mmdet.models.dense_heads.postprocess.TopKPostprocess`.
        """
        logits, boxes = (full_precision(part) for part in self(feats))
        return self.postprocess(logits, boxes, sizes.to(boxes, non_blocking=True))

    def predict(
        self, feats: Sequence[Tensor], batch_data_samples: SampleList, rescale: bool = True
    ) -> InstanceList:
        """The best detections of each image.

        Args:
            feats: Levels (B, C_l, H_l, W_l).
            batch_data_samples: Their data samples.
            rescale: Whether boxes are in pixels of the original image, not of the input.

        Returns:
            For each image ``bboxes`` (N, 4) as (x1, y1, x2, y2) in pixels, ``scores`` (N,) and
            ``labels`` (N,), best first.
        """
        return as_instances(*self.detect(feats, spanned_pixels(batch_data_samples, rescale)))


def spanned_pixels(samples: SampleList, rescale: bool) -> Tensor:
    """Width and height (B, 2) that the boxes of B images span, on the host.

    Args:
        samples: B data samples.
        rescale: Whether boxes are in pixels of the original image, not of the input.
    """
    pixels = []
    for sample in samples:
        height, width = input_shape(sample)
        x_scale, y_scale = sample.scale_factor if rescale else (1, 1)
        pixels.append((width / x_scale, height / y_scale))
    return torch.tensor(pixels)


def as_instances(labels: Tensor, boxes: Tensor, scores: Tensor) -> InstanceList:
    """Detections of a batch, as :meth:`QuerySelectionHead.detect` gives them, image by image."""
    return [
        InstanceData(bboxes=image_boxes, scores=image_scores, labels=image_labels)
        for image_boxes, image_scores, image_labels in zip(boxes, scores, labels, strict=True)
    ]
