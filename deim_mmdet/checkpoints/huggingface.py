"""Parameter names of the D-FINE and RT-DETRv2 models of Hugging Face's transformers.

The names are those of the files that ``save_pretrained`` writes. Here they are translated to the
reference's names; :mod:`.reference` translates those.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..utils.name_table import NameTable
from .reference import DFINE, RTDETRV2

_BACKBONE = [
    *(
        (f'model.backbone.model.{theirs}.{{path}}.{inner}.{{leaf}}',
         f'backbone.{ours}.{{path}}.{outer}.{{leaf}}')
        for theirs, ours in (('embedder', 'stem'), ('encoder.stages.{i}', 'stages.{i}'))
        for inner, outer in (('convolution', 'conv'), ('normalization', 'bn'), ('lab', 'lab'))
    ),
]  # fmt: skip

_RESNET = [
    *(
        (f'model.backbone.model.embedder.embedder.{k}.{inner}.{{leaf}}',
         f'backbone.conv1.conv1_{k + 1}.{outer}.{{leaf}}')
        for k in range(3)
        for inner, outer in (('convolution', 'conv'), ('normalization', 'norm'))
    ),
    *(
        (f'model.backbone.model.encoder.stages.{{i}}.layers.{theirs}.{inner}.{{leaf}}',
         f'backbone.res_layers.{{i}}.blocks.{ours}.{outer}.{{leaf}}')
        for theirs, ours in (
            ('{j}.layer.0', '{j}.branch2a'), ('{j}.layer.1', '{j}.branch2b'),
            ('{j}.layer.2', '{j}.branch2c'),
            ('{j}.shortcut', '{j}.short'), ('{j}.shortcut.1', '{j}.short.conv'),
        )
        for inner, outer in (('convolution', 'conv'), ('normalization', 'norm'))
    ),
]  # fmt: skip

_NECK = [
    *(
        (f'model.encoder.encoder.0.layers.0.{theirs}.{{path}}',
         f'encoder.encoder.0.layers.0.{ours}.{{path}}')
        for theirs, ours in (
            ('self_attn', 'self_attn'), ('fc1', 'linear1'), ('fc2', 'linear2'),
            ('self_attn_layer_norm', 'norm1'), ('final_layer_norm', 'norm2'),
        )
    ),
    ('model.encoder_input_proj.{i}.0.{leaf}', 'encoder.input_proj.{i}.conv.{leaf}'),
    ('model.encoder_input_proj.{i}.1.{leaf}', 'encoder.input_proj.{i}.norm.{leaf}'),
    ('model.encoder.lateral_convs.{path}', 'encoder.lateral_convs.{path}'),
]  # fmt: skip

_HEAD = [
    ('model.decoder_input_proj.{i}.0.{leaf}', 'decoder.input_proj.{i}.conv.{leaf}'),
    ('model.decoder_input_proj.{i}.1.{leaf}', 'decoder.input_proj.{i}.norm.{leaf}'),
    ('model.denoising_class_embed.{leaf}', 'decoder.denoising_class_embed.{leaf}'),
    ('model.enc_output.0.{leaf}', 'decoder.enc_output.proj.{leaf}'),
    ('model.enc_output.1.{leaf}', 'decoder.enc_output.norm.{leaf}'),
    ('model.enc_score_head.{leaf}', 'decoder.enc_score_head.{leaf}'),
    ('model.enc_bbox_head.{path}', 'decoder.enc_bbox_head.{path}'),
    ('model.decoder.query_pos_head.{path}', 'decoder.query_pos_head.{path}'),
    # The heads of the decoder layers are stored under one of two names, or under both.
    ('model.decoder.class_embed.{path}', 'decoder.dec_score_head.{path}'),
    ('class_embed.{path}', 'decoder.dec_score_head.{path}'),
    ('model.decoder.bbox_embed.{path}', 'decoder.dec_bbox_head.{path}'),
    ('bbox_embed.{path}', 'decoder.dec_bbox_head.{path}'),
    *(
        (f'model.decoder.layers.{{i}}.{theirs}.{{path}}',
         f'decoder.decoder.layers.{{i}}.{ours}.{{path}}')
        for theirs, ours in (
            ('self_attn', 'self_attn'), ('self_attn_layer_norm', 'norm1'),
            ('encoder_attn', 'cross_attn'), ('encoder_attn_layer_norm', 'norm2'),
            ('gateway', 'gateway'), ('fc1', 'linear1'), ('fc2', 'linear2'),
            ('final_layer_norm', 'norm3'),
        )
    ),
]  # fmt: skip

# Fusion blocks, and parts that only one kind of decoder has.
_KINDS = {
    DFINE: [
        *_BACKBONE,
        *(
            (f'model.encoder.{part}.{{i}}.{theirs}.{{path}}',
             f'encoder.{part}.{{i}}.{ours}.{{path}}')
            for part in ('fpn_blocks', 'pan_blocks')
            for theirs, ours in (
                ('conv1', 'cv1'), ('csp_rep1', 'cv2.0'), ('conv2', 'cv2.1'),
                ('csp_rep2', 'cv3.0'), ('conv3', 'cv3.1'), ('conv4', 'cv4'),
            )
        ),
        *(
            (f'model.encoder.downsample_convs.{{i}}.conv{k}.{{path}}',
             f'encoder.downsample_convs.{{i}}.0.cv{k}.{{path}}')
            for k in (1, 2)
        ),
        ('model.decoder.up', 'decoder.up'),
        ('model.decoder.reg_scale', 'decoder.reg_scale'),
        ('model.decoder.pre_bbox_head.{path}', 'decoder.pre_bbox_head.{path}'),
        ('model.decoder.lqe_layers.{path}', 'decoder.decoder.lqe_layers.{path}'),
    ],
    RTDETRV2: [
        *_RESNET,
        *(
            (f'model.encoder.{part}.{{path}}', f'encoder.{part}.{{path}}')
            for part in ('fpn_blocks', 'pan_blocks', 'downsample_convs')
        ),
    ],
}  # fmt: skip

_DERIVED = re.compile(
    r'model\.decoder\.layers\.\d+\.encoder_attn\.n(um)?_points_scale|model\.(anchors|valid_mask)'
)
_QUERY_KEY_VALUE = re.compile(r'(?P<attention>.+\.self_attn)\.(?P<part>[qkv])_proj\.(?P<leaf>\w+)')


@cache
def _table(kind: str) -> NameTable:
    return NameTable([*_KINDS[kind], *_NECK, *_HEAD])


def to_reference_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a transformers model in the naming of the reference.

    Args:
        state_dict: Tensors of a ``DFineForObjectDetection`` or ``RTDetrV2ForObjectDetection``.

    Returns:
        The same tensors by reference name. Projections of queries, keys and values are joined;
        derived tensors are left out.

    Raises:
        ValueError: There are names that such a model doesn't have, or two names of one parameter
            hold different values; the message lists them.
    """
    table = _table(DFINE if 'model.decoder.up' in state_dict else RTDETRV2)
    converted, unknown, differing = {}, [], []
    for name, tensor in _join_attention(state_dict).items():
        if _DERIVED.fullmatch(name):
            continue
        try:
            new_name = table(name)
        except KeyError:
            unknown.append(name)
            continue
        if not torch.equal(converted.setdefault(new_name, tensor), tensor):
            differing.append(name)
    if unknown:
        raise ValueError(
            f'{len(unknown)} of {len(state_dict)} names are not of a D-FINE or RT-DETRv2 model of '
            f'transformers, e.g. {unknown[:5]}'
        )
    if differing:
        raise ValueError(
            f'parameters that transformers stores twice differ from their second copy: {differing}'
        )
    return converted


def _join_attention(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the three projections of each self-attention by one, as torch's own has it."""
    joined, parts = {}, {}
    for name, tensor in state_dict.items():
        if match := _QUERY_KEY_VALUE.fullmatch(name):
            key = f'{match["attention"]}.in_proj_{match["leaf"]}'
            parts.setdefault(key, {})[match['part']] = tensor
        else:
            joined[name] = tensor
    for name, projections in parts.items():
        if len(projections) < 3:
            raise ValueError(
                f'{name.rpartition(".")[0]} has only the projections {sorted(projections)} of '
                'query, key and value'
            )
        joined[name] = torch.cat([projections[part] for part in 'qkv'])
    return joined


def saved_classes(filename: str | Path) -> list[str] | None:
    """Class names in the ``config.json`` that ``save_pretrained`` wrote beside a model's file.

    Args:
        filename: The file, or the folder of both.

    Returns:
        Names in the order of the scores; ``None`` if there are only placeholders.
    """
    path = Path(filename)
    path = (path if path.is_dir() else path.parent) / 'config.json'
    if not path.is_file():
        return None
    labels = json.loads(path.read_text()).get('id2label') or {}
    names = [labels[index] for index in sorted(labels, key=int)]
    return None if all(name.startswith('LABEL_') for name in names) else names
