"""Parameter names of the reference implementations and of this package.

One table of name pairs serves both directions. The reference implementations are DEIM, D-FINE,
RT-DETRv2, DEIMv2 and EdgeCrafter; their models share most names. A name may mean different things
in the kinds of decoder; then the kind decides.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

from torch import Tensor

from ..models.backbones import resnet_vd, vision_transformer
from ..utils.name_table import NameTable

#: The kinds of decoder.
DFINE, RTDETRV2, DEIMV2, ECDET = 'dfine', 'rtdetrv2', 'deimv2', 'ecdet'

# Pairs of a name in the reference and here, without the prefix `backbone.`.
_BACKBONE = [
    ('stem.stem{path}', 'stem.stem{path}'),
    ('stages.{path}', 'stages.{path}'),
    *resnet_vd.PUBLISHED_NAMES,
    # A vision transformer alone.
    vision_transformer.PUBLISHED_NAMES[0],
    *(
        (name, name)
        for name in (
            'cls_token', 'register_token', 'storage_tokens', 'mask_token', 'norm.{leaf}',
            'rope_embed.periods', 'patch_embed.{path}', 'blocks.{path}',
        )
    ),
    # DEIMv2's ViT-T is one level deeper than its DINOv3; reversing tells them apart.
    *(
        (f'{theirs}.{{path}}', f'{ours}.{{path}}')
        for theirs, ours in (('dinov3._model', 'vit'), ('dinov3', 'vit'))
    ),
    *(
        (f'backbone.{theirs}', f'transformer.{ours}')
        for theirs, ours in vision_transformer.PUBLISHED_NAMES
    ),
    *(
        (f'{theirs}.{{leaf}}', f'{ours}.{{leaf}}')
        for theirs, ours in (
            ('projector.{i}.conv', 'projections.{i}.conv'),
            ('projector.{i}.norm', 'projections.{i}.bn'),
            ('convs.{i}', 'fusions.{i}.conv'), ('norms.{i}', 'fusions.{i}.bn'),
            ('sta.stem.0', 'sta.stem.conv'), ('sta.stem.1', 'sta.stem.bn'),
            *(
                (f'sta.conv{i + 2}.{first + k}', f'sta.levels.{i}.{part}')
                # GELU stands in front of the last two.
                for i, first in enumerate((0, 1, 1))
                for k, part in enumerate(('conv', 'bn'))
            ),
        )
    ),
]  # fmt: skip

_NECK = [
    ('encoder.encoder.0.layers.0.{path}', 'neck.encoder.{path}'),
    *(
        (f'encoder.downsample_convs.{{i}}.0.cv{k + 1}.{theirs}.{{leaf}}',
         f'neck.downsample_convs.{{i}}.{k}.{ours}.{{leaf}}')
        for k in range(2)
        for theirs, ours in (('conv', 'conv'), ('norm', 'bn'))
    ),
    *(
        (f'encoder.{part}.{{path}}.{theirs}.{{leaf}}', f'neck.{part}.{{path}}.{ours}.{{leaf}}')
        for part in ('input_proj', 'lateral_convs', 'fpn_blocks', 'pan_blocks', 'downsample_convs',
                     'fpn_block', 'pan_block')
        for theirs, ours in (('conv', 'conv'), ('norm', 'bn'))
    ),
    *(
        (f'encoder.{theirs}.{{leaf}}', f'neck.{ours}.{{leaf}}')
        for theirs, ours in (
            ('down_sample1.1', 'pool_convs.0.conv'), ('down_sample1.2', 'pool_convs.0.bn'),
            ('down_sample2.1', 'pool_convs.1.conv'), ('down_sample2.2', 'pool_convs.1.bn'),
            ('bi_fusion.cv.conv', 'global_conv.conv'), ('bi_fusion.cv.norm', 'global_conv.bn'),
        )
    ),
]  # fmt: skip

_HEAD = [
    ('decoder.input_proj.{i}.conv.{leaf}', 'bbox_head.input_proj.{i}.conv.{leaf}'),
    ('decoder.input_proj.{i}.norm.{leaf}', 'bbox_head.input_proj.{i}.bn.{leaf}'),
    ('decoder.enc_output.proj.{leaf}', 'bbox_head.query_selection.proj.{leaf}'),
    ('decoder.enc_output.norm.{leaf}', 'bbox_head.query_selection.norm.{leaf}'),
    ('decoder.enc_score_head.{leaf}', 'bbox_head.query_selection.score.{leaf}'),
    ('decoder.enc_bbox_head.{path}', 'bbox_head.query_selection.box.{path}'),
    ('decoder.denoising_class_embed.{leaf}', 'bbox_head.denoising.embedding.{leaf}'),
    ('decoder.query_pos_head.{path}', 'bbox_head.decoder.query_position.{path}'),
    ('decoder.decoder.layers.{path}', 'bbox_head.decoder.layers.{path}'),
    ('decoder.dec_score_head.{path}', 'bbox_head.decoder.score_heads.{path}'),
]

_DISTRIBUTIONS = [
    ('decoder.up', 'bbox_head.decoder.up'),
    ('decoder.reg_scale', 'bbox_head.decoder.reg_scale'),
    ('decoder.pre_bbox_head.{path}', 'bbox_head.decoder.initial_box_head.{path}'),
    ('decoder.dec_bbox_head.{path}', 'bbox_head.decoder.distribution_heads.{path}'),
    ('decoder.decoder.lqe_layers.{i}.reg_conf.{path}',
     'bbox_head.decoder.quality_estimators.{i}.mlp.{path}'),
]  # fmt: skip


def _layer_parts(**ours: str) -> list[tuple[str, str]]:
    """Pairs for parts of decoder layers that have other names in the reference."""
    return [
        (f'decoder.decoder.layers.{{i}}.{theirs}.{{leaf}}',
         f'bbox_head.decoder.layers.{{i}}.{name}.{{leaf}}')
        for name, theirs in ours.items()
    ]  # fmt: skip


_DECODER = {
    DFINE: _DISTRIBUTIONS,
    RTDETRV2: [('decoder.dec_bbox_head.{path}', 'bbox_head.decoder.box_heads.{path}')],
    DEIMV2: [*_DISTRIBUTIONS, *_layer_parts(linear1='swish_ffn.w12', linear2='swish_ffn.w3')],
    # The reference's second norm is the one after the FFN.
    ECDET: [*_DISTRIBUTIONS, *_layer_parts(norm3='norm2')],
}

# Buffers, and second names of parameters. The reference stores them; this package derives them.
_DERIVED = re.compile(
    r'decoder\.(anchors|valid_mask)'
    r'|decoder\.decoder\.(up|reg_scale)'
    r'|decoder\.decoder\.layers\.\d+\.cross_attn\.num_points_scale'
)

# Box and score head of a decoder layer.
_LAYER_HEAD, _LAYER_SCORE = (
    re.compile(rf'(?P<part>decoder\.dec_{part}_head)\.(?P<layer>\d+)\.')
    for part in ('bbox', 'score')
)


@cache
def name_table(kind: str, reverse: bool = False) -> NameTable:
    """From the reference's names to ours, or the other way round.

    Args:
        kind: The kind of decoder, as :func:`decoder_kind` gives it.
        reverse: From our names to the reference's.
    """
    backbone = [(f'backbone.{theirs}', f'backbone.{ours}') for theirs, ours in _BACKBONE]
    pairs = [*backbone, *_NECK, *_DECODER[kind], *_HEAD]
    if reverse:
        return NameTable((ours, theirs) for theirs, ours in pairs)
    return NameTable(pairs, _DERIVED)


def decoder_kind(names: Iterable[str]) -> str:
    """Kind of decoder that a state dict belongs to, in the reference's naming or in ours.

    Args:
        names: All names of the state dict.

    Returns:
        ``'deimv2'`` where decoder layers have RMSNorm; else ``'rtdetrv2'`` where there is neither
        D-FINE's second box head of the first layer nor a parameter of a distribution; else
        ``'ecdet'`` or ``'dfine'``, with three or two layers in the MLP of the queries' positions.
    """
    names = list(names)

    def any_name(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    if any_name(r'.*decoder\.layers\.\d+\.norm1\.scale$'):
        return DEIMV2
    if not any_name(r'decoder\.(up$|pre_bbox_head\.)|bbox_head\.decoder\.(up$|initial_box_head)'):
        return RTDETRV2
    return ECDET if any_name(r'.*\.query_pos(_head|ition)\.layers\.2\.') else DFINE


def convert_name(name: str, kind: str = DFINE) -> str | None:
    """This package's name of the reference's parameter ``name``; ``None`` if it is derived here.

    Args:
        name: E.g. ``decoder.enc_output.proj.weight``.
        kind: The kind of decoder, as :func:`decoder_kind` gives it.

    Raises:
        KeyError: The reference has no parameter of that name.
    """
    return name_table(kind)(name)


def convert_reference_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a reference model in the naming of this package.

    Args:
        state_dict: Tensors by reference name, e.g. ``decoder.enc_output.proj.weight``.

    Returns:
        The same tensors by the names of this package.

    Raises:
        ValueError: There are names that the reference doesn't have, or two names of one parameter
            hold different values; the message lists them.
    """
    kind = decoder_kind(state_dict)
    return name_table(kind).renamed(
        _with_all_names(state_dict),
        'a reference DEIM, D-FINE, RT-DETRv2, DEIMv2 or ECDet model',
    )


def _with_all_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with all names of ``up``, ``reg_scale`` and a head that all layers share.

    Of a parameter with several names, the safetensors files of the Hugging Face hub have one alone.
    """
    result = dict(state_dict)
    for name in ('up', 'reg_scale'):
        if f'decoder.decoder.{name}' in result:
            result.setdefault(f'decoder.{name}', result[f'decoder.decoder.{name}'])
    heads = [match for match in map(_LAYER_HEAD.match, state_dict) if match]
    layers = {match['layer'] for name in state_dict if (match := _LAYER_SCORE.match(name))}
    if len({match['layer'] for match in heads}) == 1:
        for head in heads:
            path = head.string[head.end() :]
            result |= {f'{head["part"]}.{i}.{path}': state_dict[head.string] for i in layers}
    return result
