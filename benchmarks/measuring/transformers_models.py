"""The same nets in Hugging Face's transformers: an independent implementation to compare with."""

from typing import Any

from deim_mmdet.deployment.extras import require
from deim_mmdet.models.backbones.hgnetv2 import ARCHS, HGNetv2
from deim_mmdet.models.backbones.resnet_vd import ResNetVd
from deim_mmdet.models.dense_heads import DFINEHead, RTDETRHead
from deim_mmdet.models.necks import HybridEncoder
from deim_mmdet.utils.components import component_class, is_component

from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn

from .counterparts import check_counterpart
from .options import head_settings, with_defaults

# By depth of ResNet: kind of blocks, blocks of each stage, channels of each stage.
_RESNETS = {
    18: ('basic', [2, 2, 2, 2], [64, 128, 256, 512]),
    34: ('basic', [3, 4, 6, 3], [64, 128, 256, 512]),
    50: ('bottleneck', [3, 4, 6, 3], [256, 512, 1024, 2048]),
    101: ('bottleneck', [3, 4, 23, 3], [256, 512, 1024, 2048]),
}


def import_transformers() -> dict[type, tuple[type, type]]:
    """By class of our head, the classes of transformers' config and detector."""
    import transformers

    names = {DFINEHead: 'DFine', RTDETRHead: 'RTDetrV2'}
    return {
        head: tuple(
            getattr(transformers, f'{name}{kind}') for kind in ('Config', 'ForObjectDetection')
        )
        for head, name in names.items()
    }


def build_counterpart(model: ConfigDict) -> nn.Module:
    """The model of transformers with the layers of a config's model, randomly initialised.

    Activations and the layers of evaluation are the config's too. transformers' models lack some
    other options, but none of these changes the amount of work.

    Args:
        model: ``model`` of one of this package's configs.

    Returns:
        A ``DFineForObjectDetection`` or ``RTDetrV2ForObjectDetection`` in evaluation mode.

    Raises:
        ImportError: transformers isn't installed.
        ValueError: There is no such model in transformers.
    """
    require('transformers')
    check_counterpart('transformers', model)
    head_class = component_class(MODELS, model.bbox_head)
    config_class, detector_class = import_transformers()[head_class]
    head = head_settings(head_class, model.bbox_head)
    options = _neck_options(with_defaults(HybridEncoder, model.neck)) | _head_options(head)
    options['backbone_config'] = _backbone_options(model.backbone)
    if head_class is DFINEHead:
        options |= dict(
            depth_mult=model.neck.get('depth', 1.0),
            decoder_n_points=list(head['num_points']),
            reg_scale=head['reg_scale'],
            max_num_bins=head['reg_max'],
        )
    else:
        options['decoder_n_points'] = head['num_points'][0]
    return detector_class(config_class(**options)).eval()


def _neck_options(neck: dict[str, Any]) -> dict[str, Any]:
    levels = len(neck['in_channels'])
    return dict(
        encoder_in_channels=list(neck['in_channels']),
        feat_strides=list(neck['feat_strides']),
        encoder_hidden_dim=neck['out_channels'],
        encoder_ffn_dim=neck['ffn_channels'],
        hidden_expansion=neck['expansion'],
        encode_proj_layers=[levels - 1],
        num_feature_levels=levels,
        decoder_in_channels=[neck['out_channels']] * levels,
    )


def _head_options(head: dict[str, Any]) -> dict[str, Any]:
    return dict(
        d_model=head['embed_dims'],
        decoder_ffn_dim=head['ffn_channels'],
        # transformers has no layers for training only.
        decoder_layers=head.get('num_eval_layers') or head['num_layers'],
        decoder_activation_function=head['act'].lower(),
        num_queries=head['num_queries'],
        num_labels=head['num_classes'],
    )


def _backbone_options(backbone: ConfigDict) -> dict[str, Any]:
    if is_component(MODELS, backbone, HGNetv2):
        options = with_defaults(HGNetv2, backbone)
        spec = ARCHS[options['arch']]
        fields = dict(
            in_channels='in_channels',
            mid_channels='mid_channels',
            out_channels='out_channels',
            num_blocks='num_blocks',
            downsample='downsample',
            light_block='light',
            kernel_size='kernel_size',
            numb_of_layers='num_layers',
        )
        result = {
            f'stage_{theirs}': [getattr(stage, ours) for stage in spec.stages]
            for theirs, ours in fields.items()
        } | dict(
            model_type='hgnet_v2',
            stem_channels=[3, *spec.stem],
            hidden_sizes=[stage.out_channels for stage in spec.stages],
            use_learnable_affine_block=options['use_lab'],
        )
    else:
        options = with_defaults(ResNetVd, backbone)
        layer_type, depths, channels = _RESNETS[options['depth']]
        result = dict(
            model_type='rt_detr_resnet',
            layer_type=layer_type,
            depths=depths,
            hidden_sizes=channels,
        )
    # transformers counts the stem as the first stage.
    return result | dict(out_indices=[index + 1 for index in options['out_indices']])
