"""The reference's own D-FINE, as PyPI's pydfine packages it, to be measured beside ours."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

from deim_mmdet.checkpoints.reverse import to_reference_state_dict
from deim_mmdet.deployment.extras import require
from deim_mmdet.models.backbones.hgnetv2 import HGNetv2
from deim_mmdet.models.dense_heads import DFINEHead
from deim_mmdet.models.necks import HybridEncoder

from mmengine.config import ConfigDict
from torch import Tensor, nn

from .counterparts import check_counterpart
from .options import head_settings, with_defaults


def import_reference() -> tuple[ModuleType, type]:
    """pydfine's module of networks and criterion, and its class of configs."""
    with _torchvision():
        native = importlib.import_module('dfine.backends.native')
    return native, importlib.import_module('dfine').DFINEConfig


def build_reference(model: ConfigDict, side: int) -> tuple[nn.Module, nn.Module]:
    """D-FINE of the reference with the layers of a config's model, randomly initialised.

    Its parameters have the names of the reference's checkpoints. Activations are D-FINE's, also
    where the config has DEIM's.

    Args:
        model: ``model`` of one of this package's D-FINE configs.
        side: Height and width of the images in pixels.

    Returns:
        The net and its criterion. The net is in evaluation mode. From B images (B, 3, side, side)
        it gives a dict with ``pred_logits`` (B, Q, C) and ``pred_boxes`` (B, Q, 4), for Q queries
        and C classes. In training it takes targets too: a list of dicts of ``labels`` (n,) and
        ``boxes`` (n, 4), normalised centres and sizes of n objects. The criterion has varifocal
        loss. From training outputs and targets it gives a dict of weighted loss terms.

    Raises:
        ImportError: pydfine isn't installed.
        ValueError: The config's model isn't one of D-FINE's.
    """
    require('dfine')
    check_counterpart('reference', model)
    native, config_class = import_reference()
    config = config_class(**_options(model), imgsz=side)
    return native.DFINE.from_config(config).eval(), native.DFINECriterion.from_config(config)


def load_our_weights(reference: nn.Module, state: Mapping[str, Tensor], model: ConfigDict) -> None:
    """Give the reference's D-FINE the weights of our detector.

    Args:
        reference: A net of :func:`build_reference`.
        state: Our detector's state.
        model: The config that both were built from.
    """
    names = to_reference_state_dict(
        state, model.neck.feat_strides, model.bbox_head.decoder.num_points
    )
    own = reference.state_dict()
    # Anchors and their validity depend on the size of the images here. A detector without denoising
    # has no embedding for it.
    kept = ('decoder.anchors', 'decoder.valid_mask')
    if model.bbox_head.get('denoising', True) is None:
        kept += ('decoder.denoising_class_embed.weight',)
    reference.load_state_dict(names | {key: own[key] for key in kept})


def _options(model: ConfigDict) -> dict:
    backbone = with_defaults(HGNetv2, model.backbone)
    neck = with_defaults(HybridEncoder, model.neck)
    head = head_settings(DFINEHead, model.bbox_head)
    levels = len(neck['in_channels'])
    return dict(
        backbone=f'hgnetv2_{backbone["arch"].lower()}',
        backbone_pretrained=False,
        return_idx=list(backbone['out_indices']),
        use_lab=backbone['use_lab'],
        freeze_at=0 if backbone['frozen_stem'] else -1,
        freeze_stem_only=True,
        freeze_norm=backbone['norm_frozen'],
        in_channels=list(neck['in_channels']),
        feat_strides=list(neck['feat_strides']),
        hidden_dim=neck['out_channels'],
        encoder_dim_feedforward=neck['ffn_channels'],
        encoder_expansion=neck['expansion'],
        depth_mult=neck['depth'],
        use_encoder_idx=[levels - 1],
        num_levels=levels,
        num_classes=head['num_classes'],
        feat_channels=list(head['in_channels']),
        num_points=list(head['num_points']),
        decoder_hidden_dim=head['embed_dims'],
        decoder_layers=head['num_layers'],
        decoder_nhead=head['num_heads'],
        decoder_dim_feedforward=head['ffn_channels'],
        num_queries=head['num_queries'],
        reg_max=head['reg_max'],
        reg_scale=head['reg_scale'],
    )


def _box_area(boxes: Tensor) -> Tensor:
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(-1)
    return width * height


@contextmanager
def _torchvision() -> Iterator[None]:
    """Replaces torchvision while pydfine is imported; pydfine uses only its ``box_area``.

    PyPI's torchvision can't be imported beside torch's CPU wheel (torch 2.13).
    """
    try:
        importlib.import_module('torchvision')
    except (ImportError, RuntimeError):
        names = ('torchvision', 'torchvision.ops', 'torchvision.ops.boxes')
        modules = {name: ModuleType(name) for name in names}
        modules['torchvision.ops.boxes'].box_area = _box_area
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in names:
                del sys.modules[name]
    else:
        yield
