"""Converts checkpoints of other implementations into checkpoints of this package."""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..models.backbones.resnet_vd import rename_resnet_vd
from ..models.backbones.vision_transformer import rename_vit
from ..utils.errors import UserError
from ..utils.text import some
from .huggingface import to_reference_names
from .reference import convert_reference_state_dict

#: Begins the names of a layer that RT-DETRv4 only uses in training, with its teacher's tokens. The
#: layer marks the files of RT-DETRv4, whose networks are DEIM-D-FINE's.
PROJECTOR = 'encoder.feature_projector.'

#: Begins the names of what the losses train and nothing else uses, such as a distillation's
#: projector.
CRITERION = 'bbox_head.criterion.'

#: The known namings of a state dict.
OURS, REFERENCE, HUGGING_FACE, BACKBONE = 'deim_mmdet', 'reference', 'transformers', 'backbone'

# Marks of a naming. The first mark that any parameter's name begins with decides.
_MARKS = [
    ('bbox_head.', OURS),
    ('model.backbone.model.', HUGGING_FACE),
    ('model.conv_encoder.', HUGGING_FACE),
    ('decoder.', REFERENCE),
    ('backbone.', REFERENCE),
    # Backbones: HGNetv2, which has the same names here, ResNet-vd in both namings, and ViTs.
    *((mark, BACKBONE) for mark in ('stem.', 'conv1.conv1_', 'blocks.', '_model.blocks.')),
]


class Weights(NamedTuple):
    """The parameters of a checkpoint.

    Attributes:
        state_dict: Tensors by name, without the prefix ``module.`` of distributed training.
        part: Where the checkpoint holds them, e.g. ``ema.module``.
        naming: The naming, one of the constants above, or ``None`` if unknown.
    """

    state_dict: dict[str, Tensor]
    part: str
    naming: str | None


def find_weights(checkpoint: Mapping[str, Any]) -> Weights:
    """The parameters of a checkpoint; those of the moving average where it has one.

    Args:
        checkpoint: As the reference writes it (``{'ema': {'module': …}}``, ``{'model': …}``), as
            mmengine does (``{'state_dict': …}``), or parameters alone.

    Raises:
        ValueError: There are none; the message says what there is instead.
    """
    parts = {
        'ema.module': (checkpoint.get('ema') or {}).get('module'),
        'model': checkpoint.get('model'),
        'state_dict': checkpoint.get('state_dict'),
        'the file itself': checkpoint,
    }
    for part, state_dict in parts.items():
        if isinstance(state_dict, Mapping) and _holds_tensors(state_dict):
            state_dict = {k.removeprefix('module.'): v for k, v in state_dict.items()}
            return Weights(state_dict, part, _naming(state_dict))
    raise UserError(f'there are no parameters, only {some(sorted(map(str, checkpoint)))}')


def _holds_tensors(state_dict: Mapping) -> bool:
    return bool(state_dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state_dict.items()
    )


def _naming(state_dict: Mapping[str, Tensor]) -> str | None:
    for mark, naming in _MARKS:
        if any(name.startswith(mark) for name in state_dict):
            return naming
    return None


def to_our_names(weights: Weights) -> dict[str, Tensor]:
    """The parameters by the names of this package, without those that only training uses.

    Raises:
        ValueError: Names are unknown; the message lists them.
    """
    if weights.naming == OURS:
        return {k: v for k, v in weights.state_dict.items() if not k.startswith(CRITERION)}
    if weights.naming == HUGGING_FACE:
        return convert_reference_state_dict(to_reference_names(weights.state_dict))
    if weights.naming == REFERENCE:
        return convert_reference_state_dict(
            {k: v for k, v in weights.state_dict.items() if not k.startswith(PROJECTOR)}
        )
    if weights.naming == BACKBONE:
        bare = {name.removeprefix('_model.'): v for name, v in weights.state_dict.items()}
        return rename_vit({rename_resnet_vd(name): value for name, value in bare.items()})
    raise UserError(
        f'its {len(weights.state_dict)} names are of no model known here: '
        f'{some(sorted(weights.state_dict))}'
    )


def count_classes(state_dict: Mapping[str, Tensor]) -> int | None:
    """Number of classes of a detector's parameters (by our names); ``None`` without a head."""
    bias = state_dict.get('bbox_head.query_selection.score.bias')
    return None if bias is None else len(bias)


def make_checkpoint(
    state_dict: Mapping[str, Tensor], classes: Sequence[str] | None, **meta: Any
) -> dict:
    """A checkpoint of weights alone, as mmengine writes it.

    Args:
        state_dict: Parameters by the names of this package.
        classes: Class names, ``None`` where they aren't known.
        meta: Further entries of ``meta``.
    """
    if classes is not None:
        meta['dataset_meta'] = dict(classes=tuple(classes))
    return dict(meta=meta, state_dict=dict(state_dict))


def trained_size(checkpoint: Mapping[str, Any]) -> int | Sequence[int] | None:
    """``image_size`` of the config that a checkpoint holds; ``None`` where it states none.

    The config is read, not run: a checkpoint must not run code.
    """
    text = (checkpoint.get('meta') or {}).get('cfg')
    try:
        statements = ast.parse(text).body if isinstance(text, str) else []
        values = {
            target.id: statement.value
            for statement in statements
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        return ast.literal_eval(values['image_size'])
    except (KeyError, SyntaxError, ValueError):
        return None


def classes_of_annotations(path: str | Path, num_classes: int) -> list[str]:
    """Class names of annotations in COCO format, in the order of a reference model's scores.

    The reference numbers the classes of its own data sets by category id. If ids start at 1, score
    0 has no class.

    Args:
        path: Annotation file.
        num_classes: Number of scores.

    Raises:
        ValueError: The categories don't fit the number of scores.
    """
    names = {c['id']: c['name'] for c in json.loads(Path(path).read_text())['categories']}
    if len(names) == num_classes:
        return [names[index] for index in sorted(names)]
    if len(names) < num_classes and max(names) < num_classes and min(names) >= 0:
        return [names.get(index, f'unused_{index}') for index in range(num_classes)]
    raise UserError(
        f'{path} has {len(names)} categories, with ids up to {max(names)}, but the checkpoint '
        f'{num_classes} classes: give the annotations that it was trained with'
    )
