"""The published models, as ``model-index.yml`` lists them, and where their configs are."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from ..utils.errors import UserError
from .files import file_name

PACKAGE = Path(__file__).parents[1]


class PublishedModel(NamedTuple):
    """An entry of ``model-index.yml``.

    Attributes:
        config: Path of its config.
        file: Name of the file of its weights.
    """

    config: Path
    file: str


@cache
def published_models() -> dict[str, PublishedModel]:
    """The models of ``model-index.yml`` by name; several may share a config."""
    # An installed package holds these files in .mim; in a checkout they lie beside the package.
    installed = PACKAGE / '.mim' / 'model-index.yml'
    index = installed if installed.is_file() else PACKAGE.parent / 'model-index.yml'
    models = yaml.safe_load(index.read_text())['Models']
    return {
        model['Name']: PublishedModel(index.parent / model['Config'], file_name(model['Weights']))
        for model in models
    }


def published_file(name: str) -> PublishedModel | None:
    """The published model whose weights are in a file of that name; ``None`` for other files."""
    name = name.lower()
    return next((model for model in published_models().values() if model.file == name), None)


def config_path(name: str) -> Path:
    """Path of a config that is given by its path, or by its name in this package.

    Raises:
        ValueError: There is no such config.
    """
    if Path(name).is_file():
        return Path(name)
    models = published_models()
    folder = next(iter(models.values())).config.parent
    path = folder / f'{Path(name).stem}.py'
    if not path.is_file() and Path(name).stem in models:
        path = models[Path(name).stem].config
    if not path.is_file():
        raise UserError(
            f'there is no config {name}: give a path, or one of '
            f'{", ".join(sorted(path.stem for path in folder.glob("*.py")))}'
        )
    return path
