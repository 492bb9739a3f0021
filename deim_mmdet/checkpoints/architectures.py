"""Finds out which model a state dict belongs to, by building the known ones without memory."""

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mmdet.models  # noqa: F401  (registers the detectors)
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from torch import Size, Tensor

from ..models.backbones.hgnetv2 import ARCHS
from ..utils.errors import UserError
from ..utils.text import some
from .convert import CRITERION, count_classes
from .published import config_path, published_file, published_models

# DEIMv2's small sizes start from weights of B0.
_PUBLISHED_ARCHS = [arch for arch in ARCHS if arch.startswith('B')]

#: Backbones with published weights of their own.
BACKBONES = {
    **{f'HGNetv2-{arch}': dict(type='HGNetv2', arch=arch) for arch in _PUBLISHED_ARCHS},
    **{
        f'HGNetv2-{arch} with learnable affine': dict(type='HGNetv2', arch=arch, use_lab=True)
        for arch in _PUBLISHED_ARCHS
    },
    **{f'ResNet-vd {n}': dict(type='ResNetVd', depth=n) for n in (18, 34, 50, 101)},
    **{
        name: dict(type='VisionTransformer', embed_dims=64 * heads, num_heads=heads, **options)
        for name, heads, options in (
            ('ViT-T', 3, {}),
            ('ViT-T+', 4, {}),
            ('DINOv3 ViT-S/16', 6, dict(form='dinov3')),
            ('DINOv3 ViT-S+/16', 6, dict(form='dinov3', gated_ffn=True)),
            ('ECViT-T', 3, dict(form='ecvit')),
            ('ECViT-T+', 4, dict(form='ecvit')),
            ('ECViT-S', 6, dict(form='ecvit')),
            ('ECViT-S+', 6, dict(form='ecvit', ffn_channels=2304)),
        )
    },
}

# Words in a file's name that tell a model of DEIM's, or a baseline.
_DEIM_WORDS = ('deim', 'rtv4', 'rtdetrv4')
_BASELINE_WORDS = ('dfine', 'rtdetr')

# A norm's counter of batches. Frozen norms have none, and no result depends on it.
_COUNTER = 'num_batches_tracked'


class Architecture(NamedTuple):
    """A model that state dicts are compared with.

    Attributes:
        name: Name of its config, or of the backbone.
        shapes: Shape of each entry of its state dict, by the names of this package.
        config: Its config with the number of classes set; ``None`` for a backbone alone.
        doubt: Why its activations are only a guess; ``None`` where they are known.
    """

    name: str
    shapes: dict[str, Size]
    config: Config | None
    doubt: str | None = None

    @property
    def activation(self) -> str | None:
        """Activation of its decoder; ``None`` for a backbone alone."""
        return None if self.config is None else decoder_activation(self.config)


class Comparison(NamedTuple):
    """How a state dict differs from an architecture; the norms' counters are ignored.

    Attributes:
        missing: Names that only the architecture has.
        unexpected: Names that only the state dict has.
        reshaped: Names of entries whose shapes differ.
    """

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def size(self) -> int:
        """Number of differences."""
        return sum(map(len, self))

    def __str__(self) -> str:
        parts = (
            f'{len(names)} {what} ({some(names, 3)})'
            for what, names in zip(('missing', 'unexpected', 'of another shape'), self, strict=True)
            if names
        )
        return '; '.join(parts)


def decoder_activation(config: Config) -> str | None:
    """Activation of the decoder in a model's config; ``None`` where it states none."""
    return config.model.bbox_head.get('decoder', {}).get('act')


@cache
def detector(path: Path, num_classes: int) -> Architecture:
    """Architecture of the config at ``path``, with ``num_classes`` classes."""
    config = Config.fromfile(path)
    config.model.bbox_head.num_classes = num_classes
    model = config.model.to_dict()
    model['backbone']['init_cfg'] = None
    return Architecture(path.stem, _shapes(repr(model)), config)


@cache
def backbone(name: str) -> Architecture:
    """Architecture of one of :data:`BACKBONES`, with all of its stages."""
    model = dict(BACKBONES[name], out_indices=(0, 1, 2, 3))
    return Architecture(name, _shapes(repr(model)), None)


@cache
def _shapes(model: str) -> dict[str, Size]:
    """Shapes of a model by its config, as text: configs of several recipes may share it.

    Those that only training uses are left out.
    """
    config = ConfigDict(ast.literal_eval(model))
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmdet'):
        parameters = MODELS.build(config).state_dict()
    return {k: value.shape for k, value in parameters.items() if not k.startswith(CRITERION)}


def compare(state_dict: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> Comparison:
    """How a state dict differs from the ``shapes`` of an architecture."""
    return Comparison(
        missing=[n for n in shapes if n not in state_dict and not n.endswith(_COUNTER)],
        unexpected=[n for n in state_dict if n not in shapes and not n.endswith(_COUNTER)],
        reshaped=[n for n in shapes if n in state_dict and state_dict[n].shape != shapes[n]],
    )


def identify(
    state_dict: Mapping[str, Tensor],
    *,
    config: str | None = None,
    file_name: str = '',
    deim: bool | None = None,
) -> Architecture:
    """The model that a state dict belongs to.

    Models may have the same parameters and other activations, which no file of weights states:
    those of DEIM-D-FINE have SiLU; those of D-FINE, and DEIM's fine-tuned from Objects365, have
    ReLU. These decide, in this order: ``config``; the name of a published file; ``deim``; whether
    norms were frozen in training (frozen ones count no batches); words in the file's name. Of the
    words, ``deim`` or ``rtv4`` without ``obj`` means SiLU; otherwise ``dfine`` or ``rtdetr`` means
    ReLU.

    Args:
        state_dict: Parameters of a detector or of a backbone alone, by the names of this package.
        config: Path or name of the config to compare with, instead of all published models.
        file_name: The file's name.
        deim: Consider only DEIM's models that have a baseline, if true; leave them out, if false.

    Returns:
        The model. Its ``doubt`` says if words alone decided on the activations, or speak against
        the choice.

    Raises:
        ValueError: The parameters belong to no known model, to several, or mix two models.
    """
    num_classes = count_classes(state_dict)
    if num_classes is None and any(name.startswith('bbox_head.') for name in state_dict):
        raise UserError(
            'the parameters are of no known model, as bbox_head.query_selection.score.bias is '
            'missing: take a file with all parameters of a detector'
        )
    published = published_file(file_name) if num_classes and config is None else None
    if published and deim in (None, _is_deim(published.config)):
        model = detector(published.config, num_classes)
        if compare(state_dict, model.shapes).size() == 0:
            return model
    if config is not None:
        known = [detector(config_path(config), num_classes or 1)]
    elif num_classes is None:
        known = [backbone(name) for name in BACKBONES]
    else:
        # Several published files may be of one config.
        known = [
            detector(path, num_classes)
            for path in dict.fromkeys(model.config for model in published_models().values())
            if deim in (None, _is_deim(path))
        ]
    matching = [model for model in known if compare(state_dict, model.shapes).size() == 0]
    if not matching:
        raise UserError(_explain_mismatch(state_dict, known))
    return _choose(matching, state_dict, file_name.lower())


def tells_recipe(file_name: str) -> bool:
    """Whether a file's name has a word that tells a model of DEIM's or a baseline."""
    return any(word in file_name.lower() for word in _DEIM_WORDS + _BASELINE_WORDS)


def _is_deim(config: Path) -> bool:
    """Whether a config is of a model of DEIM's that has a baseline."""
    return config.stem.startswith('deim_')


def _choose(
    matching: list[Architecture], state_dict: Mapping[str, Tensor], file_name: str
) -> Architecture:
    """One of several models with the same parameters; see :func:`identify`."""
    counted = [m for m in matching if m.shapes.keys() == state_dict.keys()] or matching
    is_deim = any(word in file_name for word in _DEIM_WORDS)
    said = None
    if tells_recipe(file_name):
        said = 'SiLU' if is_deim and 'obj' not in file_name else 'ReLU'
    named = [m for m in counted if m.activation == said] or counted
    names = [*{m.activation: m.name for m in reversed(named)}.values()][::-1]
    if len(names) > 1:
        raise UserError(
            f'{" and ".join(names)} have the same parameters (they differ in their activations): '
            f'say which one it is, e.g. --config {names[0]}'
        )
    chosen = next((m for m in named if m.name.startswith('deim') == is_deim), named[0])
    others = [m.name for m in matching if m.activation != chosen.activation]
    if others and len(counted) < len(matching) and said in (None, chosen.activation):
        # Another recipe froze other norms, and no word of the name says that it is that one.
        return chosen
    if others:
        chosen = chosen._replace(
            doubt=f'no weights tell the activations: taken for {chosen.name} with '
            f'{chosen.activation}, but {" and ".join(others)} have the same parameters. '
            '--config says which one it is'
        )
    return chosen


def _explain_mismatch(state_dict: Mapping[str, Tensor], known: Iterable[Architecture]) -> str:
    nearest = min(known, key=lambda model: compare(state_dict, model.shapes).size())
    difference = f'compared with {nearest.name}: {compare(state_dict, nearest.shapes)}'
    parts = {name.split('.')[0] for name in state_dict}
    fits = {part: _models_with_part(part, state_dict, known) for part in sorted(parts)}
    if len(parts) > 1 and all(fits.values()):
        mixed = ', '.join(f'{part} is of {" or ".join(names)}' for part, names in fits.items())
        return f'the parameters are a mixture of several models: {mixed}; {difference}'
    return (
        f'the parameters are of no known model; {difference}. If it was trained with a config of '
        'its own, give that with --config'
    )


def _models_with_part(
    part: str, state_dict: Mapping[str, Tensor], known: Iterable[Architecture]
) -> list[str]:
    def select(entries: Mapping) -> dict:
        return {name: value for name, value in entries.items() if name.split('.')[0] == part}

    ours = select(state_dict)
    return [m.name for m in known if compare(ours, select(m.shapes)).size() == 0]


def complete(state_dict: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> dict[str, Tensor]:
    """The state dict with exactly the entries of ``shapes``, in their order.

    Counters of batches that the state dict lacks are added as 0; those that ``shapes`` lacks are
    left out.

    Args:
        state_dict: Parameters that fit ``shapes`` but for such counters.
        shapes: Shape of each entry.
    """
    return {
        name: state_dict[name] if name in state_dict else torch.zeros(shape, dtype=torch.long)
        for name, shape in shapes.items()
    }
