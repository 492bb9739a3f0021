"""Reading of configs for the command-line tools."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config and merge ``--cfg-options`` into it.

    The variables ``data_root`` and ``image_size`` of our configs are carried to every place that
    the config file used them at, so that one option is enough: folders and annotation files; the
    ``Resize`` of all pipelines, ``DenseO2OMosaic`` and ``DenseO2OMultiScale``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: ``image_size`` is not a positive multiple of 32, or the config has no such
            variable to override.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'there is no config {path}: give the path of a .py file, or the name of one of the '
            "package's configs through `mim train deim_mmdet NAME` and `mim test deim_mmdet NAME`"
        )
    cfg = Config.fromfile(path)
    options = dict(options or {})
    for name, override in (('data_root', override_data_root), ('image_size', override_image_size)):
        if name not in options:
            continue
        if not cfg.get(name):
            raise ValueError(f'{path} has no variable {name}: name the options that it stands for')
        override(cfg, options.pop(name))
    cfg.merge_from_dict(options)
    return cfg


def override_data_root(cfg: Config, root: str) -> None:
    """Put ``root`` in place of ``cfg.data_root`` in data sets and evaluators."""
    old, new = cfg.data_root, str(root).rstrip('/') + '/'

    def replaced(key: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        # The root itself, or a path under it.
        return new + value[len(old) :] if value.startswith(old) else value

    _replace(cfg, replaced)


def override_image_size(cfg: Config, size: int) -> None:
    """Put ``size`` in place of ``cfg.image_size`` in pipelines, mosaic and multi-scale."""
    if not isinstance(size, int) or size <= 0 or size % 32:
        raise ValueError(f'image_size={size} must be a positive multiple of 32')
    old = cfg.image_size

    def replaced(key: str, value: Any) -> Any:
        if key == 'scale' and isinstance(value, (list, tuple)) and tuple(value) == (old, old):
            return (size, size)
        if key in ('image_size', 'base_size') and value == old:
            return size
        if key == 'tile_size' and value == old // 2:
            return size // 2
        return value

    for part in (cfg.model.get('data_preprocessor') or {}).get('batch_augments') or []:
        if part.type == 'DenseO2OMultiScale':
            part.setdefault('base_size', old)
    _replace(cfg, replaced)


def override_length(
    cfg: Config,
    epochs: int | None = None,
    batch_size: int | None = None,
    val_interval: int | None = None,
) -> None:
    """Put what is given in place of the length of a training; its recipe follows when it starts.

    Args:
        cfg: Config of a training, changed in place.
        epochs: Epochs of training.
        batch_size: Images of each process in an iteration.
        val_interval: Epochs from one evaluation to the next.

    Raises:
        ValueError: The config doesn't train by epochs, or its loader has no batch size.
    """
    loop = cfg.train_cfg
    if (epochs or val_interval) and 'max_epochs' not in loop:
        raise ValueError(
            f'--epochs and --val-interval need train_cfg.max_epochs, but train_cfg={dict(loop)}: '
            'set its numbers by --cfg-options'
        )
    if batch_size and 'batch_size' not in cfg.train_dataloader:
        raise ValueError('--batch-size needs train_dataloader.batch_size in the config')
    if epochs:
        loop.max_epochs = epochs
    if val_interval:
        loop.val_interval = val_interval
    if batch_size:
        cfg.train_dataloader.batch_size = batch_size


def _replace(node: Any, replaced: Callable[[str, Any], Any]) -> None:
    """Apply ``replaced(key, value)`` to every value under ``node`` that isn't a container."""
    items = node.items() if hasattr(node, 'items') else enumerate(node)
    for key, value in list(items):
        new = replaced(str(key), value)
        if new is not value:
            node[key] = new
        elif isinstance(value, (dict, list)):
            _replace(value, replaced)
