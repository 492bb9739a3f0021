"""Reads configs for the command-line tools."""

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ..utils.errors import UserError
from .config_variables import set_variables
from .image_size import apply_image_size, input_sizes, keep_aspect_ratio, set_image_size

#: The top-level names of a config that runners and tools read. Others are its own variables.
RUNNER_OPTIONS = {
    *(set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}),
    *('runner_type', 'recipe', 'custom_imports', 'sync_bn', 'find_unused_parameters'),
    *('model_wrapper_cfg', 'compile', 'activation_checkpointing', 'efficient_conv_bn_eval'),
    *('tta_model', 'tta_pipeline'),
}
# Keys that are read of settings that no constructor checks.
KNOWN_KEYS = {
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'env_cfg': {
        *('cudnn_benchmark', 'tf32', 'channels_last'),
        *('mp_cfg', 'dist_cfg', 'resource_limit'),
    },
}

#: Types of mixed precision by the names of ``--amp``.
PRECISIONS = {'fp16': 'float16', 'bf16': 'bfloat16'}
#: The ``loss_scale`` of a training that scales no loss.
NO_SCALE = {'enabled': False}


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config and merge ``--cfg-options`` into it.

    A variable of the config file or of its bases (``max_epochs`` of ``deim_dfine_custom.py``,
    ``data_root``) takes effect everywhere the files use it. A dumped config no longer has such
    links: there ``data_root`` is put into folders and annotation files. ``image_size`` takes effect
    wherever the config needs it, see :func:`~deim_mmdet.engine.image_size.set_image_size`; so does
    ``keep_ratio``.

    Args:
        path: The config file.
        options: Value by dotted name, such as ``{'train_cfg.max_epochs': 12}``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Nothing has an option's name, the option would change nothing, or its value is
            of another kind than the config's; the message names the option. Or ``image_size`` can't
            be applied, see :func:`~deim_mmdet.engine.image_size.set_image_size`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'there is no config {path}: give the path of a .py file, or the name of one of the '
            "package's configs through `mim train deim_mmdet NAME` and `mim test deim_mmdet NAME`"
        )
    cfg = Config.fromfile(path)
    options = dict(options or {})
    check_names(cfg, options)
    variables = {
        option: _converted(cfg, option, options.pop(option))
        for option in [*options]
        if option.split('.')[0] not in RUNNER_OPTIONS
    }
    if variables:
        cfg = _with_variables(cfg, path, variables)
    cfg.merge_from_dict(options)
    apply_image_size(cfg)
    return cfg


def check_names(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse options whose names nothing reads.

    Raises:
        ValueError: There is one; the message names similar ones.
    """
    for option in options:
        name, *rest = option.split('.')
        known, place = {*cfg, *RUNNER_OPTIONS}, ''
        if name in known and rest:
            known, place, name = KNOWN_KEYS.get(name, {rest[0]}), f'{name}.', rest[0]
        if name not in known:
            similar = difflib.get_close_matches(name, sorted(known)) or sorted(known)
            raise UserError(
                f'--cfg-options {option}: the config has no {place}{name}, and nothing would read '
                f'it. There are {", ".join(place + other for other in similar)}'
            )


def check_no_conflict(
    options: Mapping[str, Any] | None, arguments: Mapping[str, tuple[str, Any]]
) -> None:
    """Refuse an option that an argument of the command line sets to another value.

    Args:
        options: ``--cfg-options``.
        arguments: By option, the name and value of the argument that sets it too. None as value
            means that the argument isn't given.

    Raises:
        ValueError: There is one; the message names both.
    """
    for option, value in (options or {}).items():
        argument, given = arguments.get(option, ('', None))
        if given is not None and given != value:
            raise UserError(
                f'--cfg-options {option}={value} and {argument} {given} are two settings of one '
                'thing: leave one of them out'
            )


def _converted(cfg: Config, option: str, value: Any) -> Any:
    """An option's value in the type of the config's value.

    Raises:
        ValueError: The value is of another kind.
    """
    name, *parts = option.split('.')
    old = cfg[name]
    if parts:
        return value
    if name == 'data_root' and value:
        # Configs append paths to it.
        return f'{str(value).rstrip("/")}/'
    if name == 'image_size':
        return tuple(value) if isinstance(value, list) else value
    if isinstance(old, list | tuple):
        return type(old)(value if isinstance(value, list | tuple) else [value])
    kinds = {bool: bool, int: (int, float), float: (int, float), str: (str, int, float)}
    kind = kinds.get(type(old), object)
    wrong_bool = isinstance(value, bool) and kind is not bool and kind is not object
    if not isinstance(value, kind) or wrong_bool:
        raise UserError(
            f'--cfg-options {option}={value}: the config has {old!r} there, which is of another '
            f'kind ({type(old).__name__})'
        )
    return str(value) if isinstance(old, str) else value


def _with_variables(cfg: Config, path: str | Path, variables: Mapping[str, Any]) -> Config:
    """The config at ``path`` with other values of its variables; ``cfg`` is it with its own.

    Raises:
        ValueError: One of the values would change nothing.
    """
    # Variables that are put in their places here where the files don't do it.
    resizes = bool(input_sizes(cfg))
    follows = dict(data_root=True, image_size=resizes, keep_ratio=resizes)
    effective = {}
    for option, value in variables.items():
        # The files may compute with image_size, which works for a number only.
        computes = option != 'image_size' or isinstance(value, int)
        alone = set_variables(path, {option: value}) if computes else None
        if alone is not None and _others(alone, option) != _others(cfg, option):
            effective[option] = value
        elif not follows.get(option) and cfg.get(option) != value:
            raise UserError(
                f'--cfg-options {option}: {option.split(".")[0]} is a variable from which nothing '
                'else in the config follows: name the options that it was meant for'
            )
    if effective:
        cfg = set_variables(path, effective)
    if 'data_root' in variables.keys() - effective.keys():
        override_data_root(cfg, variables['data_root'])
    if 'image_size' in variables:
        set_image_size(cfg, variables['image_size'])
    if 'keep_ratio' in variables:
        cfg.keep_ratio = variables['keep_ratio']
        if not cfg.keep_ratio:
            # Also where somebody wrote a Letterbox by hand.
            keep_aspect_ratio(cfg, keep=False)
    return cfg


def _others(cfg: Config, option: str) -> dict:
    """A config without the variable that an option sets."""
    return {k: v for k, v in cfg.to_dict().items() if k != option.split('.')[0]}


def override_data_root(cfg: Config, root: str) -> None:
    """Put ``root`` in place of ``cfg.data_root`` in data sets and evaluators.

    Args:
        cfg: The config, changed in place.
        root: The new folder, with a slash at its end.

    Raises:
        ValueError: ``cfg.data_root`` is empty, so that no path is known to lie under it.
    """
    if not cfg.data_root:
        raise UserError(
            '--cfg-options data_root: it is empty in the config, so that no path is known to lie '
            'under it. Name the options that it was meant for, such as '
            'val_dataloader.dataset.data_root'
        )
    old = f'{cfg.data_root.rstrip("/")}/'

    def replace_under(node: Any) -> None:
        items = node.items() if hasattr(node, 'items') else enumerate(node)
        for key, value in list(items):
            # The root itself, or a path under it; not a sibling whose name begins alike.
            if isinstance(value, str) and value and f'{value}/'.startswith(old):
                node[key] = root + value[len(old) :]
            elif isinstance(value, dict | list):
                replace_under(value)

    replace_under(cfg)


def override_length(
    cfg: Config,
    epochs: int | None = None,
    batch_size: int | None = None,
    val_interval: int | None = None,
) -> None:
    """Set the length of a training, as far as given; its recipe follows when it starts.

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
        raise UserError(
            f'--epochs and --val-interval need train_cfg.max_epochs, but train_cfg={dict(loop)}: '
            'set its numbers by --cfg-options'
        )
    if batch_size and 'batch_size' not in cfg.train_dataloader:
        raise UserError('--batch-size needs train_dataloader.batch_size in the config')
    if epochs:
        loop.max_epochs = epochs
    if val_interval:
        loop.val_interval = val_interval
    if batch_size:
        cfg.train_dataloader.batch_size = batch_size


def set_mixed_precision(cfg: Config, precision: str) -> None:
    """Train in mixed precision: products and convolutions in 16 bits, weights in float32.

    A training on the CPU takes bfloat16 in either case.

    Args:
        cfg: Config of a training, changed in place.
        precision: Key of :data:`PRECISIONS`. ``'fp16'`` is float16 with a scaled loss, since its
            smallest numbers are 6e-8. The scale follows the gradients, unless the config has a
            ``loss_scale``. ``'bf16'``, bfloat16, has the range of float32 and needs no scale.
    """
    scale = NO_SCALE if precision == 'bf16' else cfg.optim_wrapper.get('loss_scale', 'dynamic')
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=PRECISIONS[precision], loss_scale=scale)
