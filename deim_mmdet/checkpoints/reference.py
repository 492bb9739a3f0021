"""Parameter names of the reference implementations and of this package.

One table of name pairs serves both directions. The reference implementations are DEIM, D-FINE and
RT-DETRv2; their models share most names. A name may mean different things in the two kinds of
decoder; then the kind decides.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

from torch import Tensor

from ..models.backbones import resnet_vd
from ..utils.name_table import NameTable

#: The kinds of decoder.
DFINE, RTDETRV2 = 'dfine', 'rtdetrv2'

# Pairs of a name in the reference and here, without the prefix `backbone.`.
_BACKBONE = [
    ('stem.stem{path}', 'stem.stem{path}'),
    ('stages.{path}', 'stages.{path}'),
    *resnet_vd.PUBLISHED_NAMES,
]

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
        for part in ('input_proj', 'lateral_convs', 'fpn_blocks', 'pan_blocks', 'downsample_convs')
        for theirs, ours in (('conv', 'conv'), ('norm', 'bn'))
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

_DECODER = {
    DFINE: [
        ('decoder.up', 'bbox_head.decoder.up'),
        ('decoder.reg_scale', 'bbox_head.decoder.reg_scale'),
        ('decoder.pre_bbox_head.{path}', 'bbox_head.decoder.initial_box_head.{path}'),
        ('decoder.dec_bbox_head.{path}', 'bbox_head.decoder.distribution_heads.{path}'),
        ('decoder.decoder.lqe_layers.{i}.reg_conf.{path}',
         'bbox_head.decoder.quality_estimators.{i}.mlp.{path}'),
    ],
    RTDETRV2: [
        ('decoder.dec_bbox_head.{path}', 'bbox_head.decoder.box_heads.{path}'),
    ],
}  # fmt: skip

# Buffers, and second names of parameters. The reference stores them; this package derives them.
_DERIVED = re.compile(
    r'decoder\.(anchors|valid_mask)'
    r'|decoder\.decoder\.(up|reg_scale)'
    r'|decoder\.decoder\.layers\.\d+\.cross_attn\.num_points_scale'
)


@cache
def _table(kind: str, reverse: bool = False) -> NameTable:
    backbone = [(f'backbone.{theirs}', f'backbone.{ours}') for theirs, ours in _BACKBONE]
    pairs = [*backbone, *_NECK, *_HEAD, *_DECODER[kind]]
    return NameTable((ours, theirs) if reverse else (theirs, ours) for theirs, ours in pairs)


def decoder_kind(names: Iterable[str]) -> str:
    """Kind of decoder that a state dict belongs to, in the reference's naming or in ours.

    Args:
        names: All names of the state dict.

    Returns:
        ``'dfine'`` where there is D-FINE's second box head of the first layer, or a parameter of a
        distribution; else ``'rtdetrv2'``.
    """
    marks = re.compile(r'decoder\.(up$|pre_bbox_head\.)|bbox_head\.decoder\.(up$|initial_box_head)')
    return DFINE if any(marks.match(name) for name in names) else RTDETRV2


def convert_name(name: str, kind: str = DFINE) -> str | None:
    """This package's name of the reference's parameter ``name``; ``None`` if it is derived here.

    Args:
        name: E.g. ``decoder.enc_output.proj.weight``.
        kind: ``'dfine'`` or ``'rtdetrv2'``, the kind of decoder.

    Raises:
        KeyError: The reference has no parameter of that name.
    """
    return None if _DERIVED.fullmatch(name) else _table(kind)(name)


def reference_name(name: str, kind: str = DFINE) -> str:
    """The reference's name of our parameter ``name``; the inverse of :func:`convert_name`.

    Raises:
        KeyError: This package has no parameter of that name.
    """
    return _table(kind, reverse=True)(name)


def convert_reference_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a reference DEIM, D-FINE or RT-DETRv2 model in the naming of this package.

    Args:
        state_dict: Tensors by reference name, e.g. ``decoder.enc_output.proj.weight``.

    Returns:
        The same tensors by the names of this package.

    Raises:
        ValueError: There are names that the reference doesn't have; the message lists them.
    """
    kind = decoder_kind(state_dict)
    converted, unknown = {}, []
    for name, tensor in state_dict.items():
        try:
            new_name = convert_name(name, kind)
        except KeyError:
            unknown.append(name)
            continue
        if new_name is not None:
            converted[new_name] = tensor
    if unknown:
        raise ValueError(
            f'{len(unknown)} of {len(state_dict)} names are not of a reference DEIM, D-FINE or '
            f'RT-DETRv2 model, e.g. {unknown[:5]}'
        )
    return converted
