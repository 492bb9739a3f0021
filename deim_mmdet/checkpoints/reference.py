"""Parameter names of the reference implementation and of this package."""

import re
from collections.abc import Mapping

from torch import Tensor

# Buffers and second names of parameters that the reference stores and this package derives.
_DERIVED = re.compile(
    r'decoder\.(anchors|valid_mask)'
    r'|decoder\.decoder\.(up|reg_scale)'
    r'|decoder\.decoder\.layers\.\d+\.cross_attn\.num_points_scale'
)

# Prefix in the reference → prefix here; the first that fits holds.
_PREFIXES = [
    ('backbone.', 'backbone.'),
    ('encoder.encoder.0.layers.0.', 'neck.encoder.'),
    ('encoder.', 'neck.'),
    ('decoder.decoder.layers.', 'bbox_head.decoder.layers.'),
    ('decoder.decoder.lqe_layers.', 'bbox_head.decoder.quality_estimators.'),
    ('decoder.input_proj.', 'bbox_head.input_proj.'),
    ('decoder.denoising_class_embed.', 'bbox_head.denoising.embedding.'),
    ('decoder.query_pos_head.', 'bbox_head.decoder.query_position.'),
    ('decoder.enc_output.', 'bbox_head.query_selection.'),
    ('decoder.enc_score_head.', 'bbox_head.query_selection.score.'),
    ('decoder.enc_bbox_head.', 'bbox_head.query_selection.box.'),
    ('decoder.dec_score_head.', 'bbox_head.decoder.score_heads.'),
    ('decoder.dec_bbox_head.', 'bbox_head.decoder.distribution_heads.'),
    ('decoder.pre_bbox_head.', 'bbox_head.decoder.initial_box_head.'),
    ('decoder.up', 'bbox_head.decoder.up'),
    ('decoder.reg_scale', 'bbox_head.decoder.reg_scale'),
]

# What differs inside a module.
_INNER = [
    (re.compile(r'^(neck\.(?!encoder).*|bbox_head\.input_proj\.\d+)\.norm\.'), r'\1.bn.'),
    (re.compile(r'^(neck\.downsample_convs\.\d+)\.0\.cv1\.'), r'\1.0.'),
    (re.compile(r'^(neck\.downsample_convs\.\d+)\.0\.cv2\.'), r'\1.1.'),
    (re.compile(r'^(bbox_head\.decoder\.quality_estimators\.\d+)\.reg_conf\.'), r'\1.mlp.'),
]


def convert_name(name: str) -> str | None:
    """Name here of the reference's parameter ``name``; ``None`` if it is derived here.

    Raises:
        KeyError: The reference has no parameter of that name.
    """
    if _DERIVED.fullmatch(name):
        return None
    for prefix, replacement in _PREFIXES:
        if name.startswith(prefix):
            converted = replacement + name[len(prefix) :]
            break
    else:
        raise KeyError(name)
    for pattern, replacement in _INNER:
        converted = pattern.sub(replacement, converted)
    return converted


def convert_reference_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a reference DEIM-D-FINE or D-FINE model in the naming of this package.

    Args:
        state_dict: Tensors by reference name, e.g. ``decoder.enc_output.proj.weight``.

    Returns:
        The same tensors by the names of this package.

    Raises:
        ValueError: There are names that the reference doesn't have; they are listed.
    """
    converted, unknown = {}, []
    for name, tensor in state_dict.items():
        try:
            new_name = convert_name(name)
        except KeyError:
            unknown.append(name)
            continue
        if new_name is not None:
            converted[new_name] = tensor
    if unknown:
        raise ValueError(
            f'{len(unknown)} names are not of a reference D-FINE model, e.g. {unknown[:5]}'
        )
    return converted
