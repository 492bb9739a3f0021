"""Which models the independent implementations have, too."""

from collections.abc import Mapping

from deim_mmdet.models.backbones.hgnetv2 import HGNetv2
from deim_mmdet.models.backbones.resnet_vd import ResNetVd
from deim_mmdet.models.dense_heads import DFINEHead, RTDETRHead
from deim_mmdet.models.layers.dfine_decoder import DFINEDecoder
from deim_mmdet.models.layers.input_channels import RGB
from deim_mmdet.models.layers.rtdetr_decoder import RTDETRDecoder
from deim_mmdet.models.necks import HybridEncoder
from deim_mmdet.utils.components import component_class, component_name

from mmdet.registry import MODELS

# What their models are made of, by class of our head: backbones, kind of neck, decoder.
_DFINE = ((HGNetv2, ResNetVd), 'dfine', DFINEDecoder)
_RTDETR = ((HGNetv2, ResNetVd), 'rtdetr', RTDETRDecoder)
_MODELS = dict(
    reference={DFINEHead: ((HGNetv2,), *_DFINE[1:])},
    transformers={DFINEHead: _DFINE, RTDETRHead: _RTDETR},
)
_PACKAGES = dict(reference='pydfine', transformers='transformers')
# Depths of ResNet-vd that they have, and options that change the network which they lack.
_DEPTHS = (18, 34, 50, 101)
_KNOWN = {
    *('type', 'depth', 'out_indices', 'in_channels', 'init_cfg', 'with_cp'),
    *('frozen_stages', 'frozen_stem', 'norm_frozen', 'norm_eval'),
}


def missing_counterpart(backend: str, model: Mapping) -> str:
    """Why an independent implementation has no model with the layers of a config's.

    Args:
        backend: One of :data:`~.latency.BACKENDS`.
        model: ``model`` of a config.

    Returns:
        The reason; empty where there is such a model, or the backend runs ours.
    """
    if backend not in _MODELS:
        return ''
    part = _missing_part(_MODELS[backend], model)
    return part and f'{_PACKAGES[backend]} has no model {part}'


def check_counterpart(backend: str, model: Mapping) -> None:
    """Raise a ``ValueError`` with the reason of :func:`missing_counterpart`, if there is one."""
    if reason := missing_counterpart(backend, model):
        raise ValueError(reason)


def _missing_part(known: Mapping[type, tuple], model: Mapping) -> str:
    """The first part of a model that isn't as in the known ones."""
    head, backbone, neck = model['bbox_head'], model['backbone'], model.get('neck')
    kind = component_class(MODELS, head)
    if kind not in known:
        return f'with a {component_name(head)}'
    backbones, neck_kind, decoder_class = known[kind]
    if part := _missing_backbone(backbones, backbone):
        return part
    if neck is None:
        return 'without a neck'
    if component_class(MODELS, neck) is not HybridEncoder:
        return f'with a {component_name(neck)}'
    if neck.get('kind', 'dfine') != neck_kind:
        return f'with a {component_name(head)} and a HybridEncoder of kind {neck.get("kind")}'
    decoder = {'type': kind.default_types['decoder'], **(head.get('decoder') or {})}
    if component_class(MODELS, decoder) is not decoder_class:
        return f'with a {component_name(decoder)}'
    if not (head.get('query_selection') or {}).get('project', True):
        return 'whose query selection has no projection'
    return ''


def _missing_backbone(backbones: tuple[type, ...], backbone: Mapping) -> str:
    kind = component_class(MODELS, backbone)
    if kind not in backbones:
        return f'with a {component_name(backbone)}'
    if kind is HGNetv2 and not backbone['arch'].startswith('B'):
        return f'with an HGNetv2 {backbone["arch"]}'
    if kind is ResNetVd:
        if backbone['depth'] not in _DEPTHS:
            return f'with a ResNetVd of {backbone["depth"]} layers'
        if others := sorted(backbone.keys() - _KNOWN):
            return f'with a ResNetVd that has its own {", ".join(others)}'
    channels = backbone.get('in_channels', RGB)
    return '' if channels == RGB else f'for images of {channels} channels'
