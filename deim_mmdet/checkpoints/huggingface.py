"""Parameter names of the D-FINE, RT-DETRv2 and DEIMv2 models of Hugging Face's transformers.

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

from ..utils.errors import UserError
from ..utils.name_table import NameTable
from .huggingface_names import HEAD, KINDS, NECK
from .huggingface_vit import BACKBONE, convert_vit
from .reference import DEIMV2, DFINE, RTDETRV2

_DERIVED = re.compile(
    r'model\.decoder\.layers\.\d+\.encoder_attn\.n(um)?_points_scale|model\.(anchors|valid_mask)'
)
_PROJECTION = re.compile(
    r'(?P<layer>.+)\.(?P<module>self_attn|mlp)\.(?P<part>q|k|v|gate|up)_proj\.(?P<leaf>\w+)'
)
# Projections that the reference computes as one, and its name: of self-attention and of SwiGLU.
_JOINED = dict(
    self_attn=(('q', 'k', 'v'), 'self_attn.in_proj_{leaf}'),
    mlp=(('gate', 'up'), 'mlp.gate_up.{leaf}'),
)
_SELECTION_IDENTITY = 'model.enc_output.'


@cache
def _table(kind: str) -> NameTable:
    return NameTable([*KINDS[kind], *NECK, *HEAD], _DERIVED)


def _kind(state_dict: Mapping[str, Tensor]) -> str:
    if any(name.startswith('model.conv_encoder.') for name in state_dict):
        return DEIMV2
    return DFINE if 'model.decoder.up' in state_dict else RTDETRV2


def to_reference_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a transformers model in the naming of the reference.

    Args:
        state_dict: Tensors of a ``DFineForObjectDetection``, ``RTDetrV2ForObjectDetection`` or
            ``Deimv2ForObjectDetection``.

    Returns:
        The same tensors by reference name. Projections of queries, keys and values are joined, and
        so are those of a SwiGLU; derived tensors are left out.

    Raises:
        ValueError: There are names that such a model doesn't have, or two names of one parameter
            hold different values; the message lists them. Or a DEIMv2 was trained in transformers.
    """
    kind = _kind(state_dict)
    vit = convert_vit(state_dict)
    if kind == DEIMV2:
        state_dict = _without_selection_identity(state_dict)
    if vit:
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(BACKBONE)}
    owner = 'a D-FINE, RT-DETRv2 or DEIMv2 model of transformers'
    return vit | _table(kind).renamed(_join(state_dict), owner)


def _without_selection_identity(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a DEIMv2 without the projection that the authors' network lacks.

    transformers (5.23) projects and normalises tokens before the selection of queries, makes the
    position of a query anew in each layer, and has ReLU in its MLPs. Where it has converted the
    authors' weights, the projection is the identity. Other weights were trained as another network.

    Raises:
        ValueError: The projection isn't the identity.
    """
    kept = {k: v for k, v in state_dict.items() if not k.startswith(_SELECTION_IDENTITY)}
    for name in state_dict.keys() - kept.keys():
        value = state_dict[name]
        neutral = torch.eye(len(value)) if value.dim() == 2 else torch.zeros(len(value))
        if name.endswith('1.weight'):
            neutral = torch.ones(len(value))
        if not torch.equal(value.cpu(), neutral.to(value.dtype)):
            raise UserError(
                'its DEIMv2 was trained in transformers, whose network is another one: it projects '
                f"tokens before it selects queries ({name}), and the authors' DEIMv2 does not. "
                "Take weights that transformers has converted from the authors', or their own file"
            )
    return kept


def _join(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the projections that the reference computes as one."""
    joined, found = {}, {}
    for name, tensor in state_dict.items():
        if match := _PROJECTION.fullmatch(name):
            key = match['layer'], match['module'], match['leaf']
            found.setdefault(key, {})[match['part']] = tensor
        else:
            joined[name] = tensor
    for (layer, module, leaf), projections in found.items():
        parts, target = _JOINED[module]
        if projections.keys() != {*parts}:
            raise UserError(
                f'{layer}.{module} has only the projections {", ".join(sorted(projections))} of '
                f'{", ".join(parts)}: the file is incomplete, take another copy of it'
            )
        name = f'{layer}.{target.format(leaf=leaf)}'
        joined[name] = torch.cat([projections[part] for part in parts])
    return joined


def classes_beside(filename: str | Path) -> list[str] | None:
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
