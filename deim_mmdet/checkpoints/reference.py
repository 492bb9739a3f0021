"""Parameter names of the reference implementations and of this package.

One table of name pairs serves both ways. The reference implementations are DEIM, D-FINE and
RT-DETRv2; their models share most names. Where a name means different things in the two kinds of
decoder, the kind decides.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache

from torch import Tensor

#: The kinds of decoder.
DFINE, RTDETRV2 = 'dfine', 'rtdetrv2'

# Parts of a name that both sides share: indices, any number of parts, the last part.
_FIELDS = dict(i=r'\d+', j=r'\d+', path=r'\w+(?:\.\w+)*', leaf=r'\w+')

# Pairs of a name in the reference and here, without the prefix `backbone.`.
_BACKBONE = [
    ('stem.stem{path}', 'stem.stem{path}'),
    ('stages.{path}', 'stages.{path}'),
    *(
        (f'conv1.conv1_{k + 1}.{theirs}.{{leaf}}', f'stem.{3 * k + offset}.{{leaf}}')
        for k in range(3)
        for theirs, offset in (('conv', 0), ('norm', 1))
    ),
    *(
        (f'res_layers.{s}.blocks.{{i}}.{theirs}.{{leaf}}', f'layer{s + 1}.{{i}}.{ours}.{{leaf}}')
        for s in range(4)
        for theirs, ours in (
            *((f'branch2{"abc"[k]}.conv', f'conv{k + 1}') for k in range(3)),
            *((f'branch2{"abc"[k]}.norm', f'bn{k + 1}') for k in range(3)),
            # Behind an average pool, from the second stage on, the shortcut is one level deeper.
            (f'short{".conv" * (s > 0)}.conv', 'downsample.1'),
            (f'short{".conv" * (s > 0)}.norm', 'downsample.2'),
        )
    ),
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

# Buffers, and second names of parameters, that the reference stores and this package derives.
_DERIVED = re.compile(
    r'decoder\.(anchors|valid_mask)'
    r'|decoder\.decoder\.(up|reg_scale)'
    r'|decoder\.decoder\.layers\.\d+\.cross_attn\.num_points_scale'
)


class NameTable:
    """Pairs of name templates, read in either direction; the first pair that fits holds.

    Args:
        pairs: Templates with the same fields: ``{i}``, ``{j}``, ``{path}``, ``{leaf}``.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._rules = [(_pattern(source), target) for source, target in pairs]

    def __call__(self, name: str) -> str:
        """The other side's name.

        Raises:
            KeyError: No pair fits.
        """
        for pattern, target in self._rules:
            if match := pattern.fullmatch(name):
                return target.format(**match.groupdict())
        raise KeyError(name)


def _pattern(template: str) -> re.Pattern:
    text = re.escape(template).replace(r'\{', '{').replace(r'\}', '}')
    return re.compile(text.format(**{name: f'(?P<{name}>{p})' for name, p in _FIELDS.items()}))


@cache
def _table(kind: str, reverse: bool = False) -> NameTable:
    backbone = [(f'backbone.{theirs}', f'backbone.{ours}') for theirs, ours in _BACKBONE]
    pairs = [*backbone, *_NECK, *_HEAD, *_DECODER[kind]]
    return NameTable((ours, theirs) if reverse else (theirs, ours) for theirs, ours in pairs)


_backbone_table = NameTable(_BACKBONE)


def decoder_kind(names: Iterable[str]) -> str:
    """Kind of decoder that a state dict belongs to, in the reference's naming or in ours.

    Args:
        names: All names of the state dict.

    Returns:
        ``'dfine'`` where there is the box head of its first decoder layer or a distribution's
        parameter, else ``'rtdetrv2'``.
    """
    marks = re.compile(r'decoder\.(up$|pre_bbox_head\.)|bbox_head\.decoder\.(up$|initial_box_head)')
    return DFINE if any(marks.match(name) for name in names) else RTDETRV2


def convert_name(name: str, kind: str = DFINE) -> str | None:
    """Name here of the reference's parameter ``name``; ``None`` if it is derived here.

    Args:
        name: E.g. ``decoder.enc_output.proj.weight``.
        kind: ``'dfine'`` or ``'rtdetrv2'``, the kind of decoder.

    Raises:
        KeyError: The reference has no parameter of that name.
    """
    return None if _DERIVED.fullmatch(name) else _table(kind)(name)


def reference_name(name: str, kind: str = DFINE) -> str:
    """Name in the reference of our parameter ``name``, the inverse of :func:`convert_name`.

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
        ValueError: There are names that the reference doesn't have; they are listed.
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


def rename_resnet_vd(name: str) -> str:
    """Name inside :class:`ResNetVd` of a parameter of the published ResNet-vd files.

    Args:
        name: E.g. ``res_layers.0.blocks.0.branch2a.conv.weight``; any other name is returned as
            it is, for instance one of this package. HGNetv2's files need no renaming.
    """
    try:
        return _backbone_table(name)
    except KeyError:
        return name
