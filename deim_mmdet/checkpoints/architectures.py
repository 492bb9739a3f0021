"""Finds out which model a state dict belongs to, by building the known ones without memory."""

import copy
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mmdet.models  # noqa: F401  (registers the detectors)
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Size, Tensor

from ..models.backbones.hgnetv2 import ARCHS
from .convert import count_classes

PACKAGE = Path(__file__).parents[1]

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
}

# A norm's counter of batches. Frozen norms have none, and no result depends on it.
_COUNTER = 'num_batches_tracked'


class Architecture(NamedTuple):
    """A model that state dicts are compared with.

    Attributes:
        name: Name of its config, or of the backbone.
        shapes: Shape of each entry of its state dict, by the names of this package.
        config: Its config with the number of classes set; ``None`` for a backbone alone.
    """

    name: str
    shapes: dict[str, Size]
    config: Config | None


class Comparison(NamedTuple):
    """How a state dict differs from an architecture; the norms' counters are ignored."""

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def size(self) -> int:
        return sum(map(len, self))

    def __str__(self) -> str:
        parts = (
            f'{len(names)} {what} ({", ".join(names[:3])}{", …" if len(names) > 3 else ""})'
            for what, names in zip(('missing', 'unexpected', 'of another shape'), self, strict=True)
            if names
        )
        return '; '.join(parts)


def published_configs() -> dict[str, Path]:
    """Config file of each published model in ``model-index.yml``, by name."""
    # An installed package holds these files in .mim; in a checkout they lie beside the package.
    installed = PACKAGE / '.mim' / 'model-index.yml'
    index = installed if installed.is_file() else PACKAGE.parent / 'model-index.yml'
    models = yaml.safe_load(index.read_text())['Models']
    return {model['Name']: index.parent / model['Config'] for model in models}


def config_path(name: str) -> Path:
    """Path of a config that is given by its path, or by its name in this package.

    Raises:
        ValueError: There is no such config.
    """
    if Path(name).is_file():
        return Path(name)
    folder = next(iter(published_configs().values())).parent
    path = folder / f'{Path(name).stem}.py'
    if not path.is_file():
        raise ValueError(
            f'there is no config {name}: give a path, or one of '
            f'{", ".join(sorted(path.stem for path in folder.glob("*.py")))}'
        )
    return path


@cache
def detector(path: Path, num_classes: int) -> Architecture:
    """Architecture of the config at ``path`` for a number of classes."""
    config = Config.fromfile(path)
    config.model.bbox_head.num_classes = num_classes
    # mmdet's detectors write into the config that they are built from.
    model = copy.deepcopy(config.model)
    model.backbone.init_cfg = None
    return Architecture(path.stem, _shapes(model), config)


@cache
def backbone(name: str) -> Architecture:
    """Architecture of one of :data:`BACKBONES`, with all of its stages."""
    return Architecture(name, _shapes(dict(BACKBONES[name], out_indices=(0, 1, 2, 3))), None)


def _shapes(model: dict) -> dict[str, Size]:
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmdet'):
        return {name: value.shape for name, value in MODELS.build(model).state_dict().items()}


def compare(state_dict: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> Comparison:
    """Names that only one side has, and entries whose shapes differ."""
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
    baseline: bool = False,
) -> Architecture:
    """The model that a state dict belongs to.

    Args:
        state_dict: Parameters of a detector or of a backbone alone, by the names of this package.
        config: Path or name of the config to compare with, instead of all published models.
        file_name: The file's name. DEIM and its baseline can have the same parameters. Then
            ``deim`` in the name means DEIM; otherwise ``dfine`` or ``rtdetr`` means the baseline.
        baseline: Leave out DEIM's models that have a baseline.

    Raises:
        ValueError: The parameters belong to no known model, to several, or mix two models.
    """
    num_classes = count_classes(state_dict)
    if num_classes is None and any(name.startswith('bbox_head.') for name in state_dict):
        raise ValueError(
            'the parameters are of no known model: bbox_head.query_selection.score.bias is missing'
        )
    if config is not None:
        known = [detector(config_path(config), num_classes or 1)]
    elif num_classes is None:
        known = [backbone(name) for name in BACKBONES]
    else:
        known = [
            detector(path, num_classes)
            for name, path in published_configs().items()
            if not (baseline and name.startswith('deim_'))
        ]
    matching = [model for model in known if compare(state_dict, model.shapes).size() == 0]
    if not matching:
        raise ValueError(_explain_mismatch(state_dict, known))
    return _choose(matching, state_dict, file_name.lower())


def _choose(
    matching: list[Architecture], state_dict: Mapping[str, Tensor], file_name: str
) -> Architecture:
    """One of several models with the same parameters."""
    if len(matching) > 1 and any(word in file_name for word in ('deim', 'dfine', 'rtdetr')):
        is_deim = 'deim' in file_name
        matching = [m for m in matching if m.name.startswith('deim') == is_deim] or matching
    if len(matching) > 1:
        # Some recipes freeze norms, which then have no counters.
        matching = [m for m in matching if m.shapes.keys() == state_dict.keys()] or matching
    if len(matching) > 1:
        names = [model.name for model in matching]
        raise ValueError(
            f'{" and ".join(names)} have the same parameters (they differ in their activations): '
            f'say which one it is, e.g. --config {names[0]}'
        )
    return matching[0]


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

    Counters of batches that only one side has are added as 0 or left out.
    """
    return {
        name: state_dict[name] if name in state_dict else torch.zeros(shape, dtype=torch.long)
        for name, shape in shapes.items()
    }
