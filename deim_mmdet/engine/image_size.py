"""The size of the network's input: a config says it once, and it is put wherever it is needed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmcv.transforms import RandomChoice, Resize, TestTimeAug
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.logging import print_log

from ..datasets.transforms import DenseO2OMosaic, Letterbox
from ..models.data_preprocessors import DenseO2OMultiScale
from ..utils.components import component_class, is_component
from ..utils.errors import UserError

#: Sides of the input are multiples of this number, the stride of the coarsest features.
SIZE_STEP = 32
#: The variable that holds the ``image_size`` that a config's pipelines were written for.
APPLIED = 'applied_image_size'
#: The variable that says whether a config's pipelines keep the proportions of images.
APPLIED_RATIO = 'applied_keep_ratio'
# The parts that a run builds. Pipelines elsewhere in a config are variables that these came from.
BUILT = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'custom_hooks')
# Transforms that choose among alternatives, which may have other sizes on purpose.
CHOICES = (RandomChoice, TestTimeAug)

Size = tuple[int, int]


def apply_image_size(cfg: Config | dict) -> None:
    """Put ``cfg.image_size`` wherever the config needs it, if a file or an option has changed it.

    ``cfg.keep_ratio`` takes effect in the same way, see :func:`keep_aspect_ratio`.

    ``applied_image_size``, in the base config of the data, is the size that its pipelines were
    written for. If both are the same, or a config has no such variable, all sizes stay as written,
    also those that somebody wrote into the pipelines by hand.

    Args:
        cfg: A whole config, changed in place.

    Raises:
        ValueError: See :func:`set_image_size`.
    """
    keep = bool(cfg.get('keep_ratio'))
    if (keep or cfg.get(APPLIED_RATIO)) and (changed := keep_aspect_ratio(cfg, keep)):
        how = 'keep their proportions' if keep else 'are stretched to the input'
        print_log(
            f'keep_ratio={keep}: images {how} in {changed} parts of the config', logger='current'
        )
    size, applied = cfg.get('image_size'), cfg.get(APPLIED)
    if applied is None:
        return
    if _height_and_width(size) != _height_and_width(applied):
        if changed := set_image_size(cfg, size):
            print_log(
                f'image_size={size}: {changed} parts of the config had another size and follow it',
                logger='current',
            )
    elif by_hand := input_sizes(cfg).keys() - {_height_and_width(size)}:
        print_log(
            f'image_size={size} of a base config is not in force where pipelines have sizes of '
            f'their own (height, width): {sorted(by_hand)}',
            logger='current',
        )


def set_image_size(cfg: Config | dict, size: int | Sequence[int]) -> int:
    """Put a size of the network's input wherever a config needs it.

    These options change, by the type of the component:

    - ``Resize`` to a fixed size (``keep_ratio=False``), ``Letterbox`` and ``scale`` of
      ``DenseO2OMosaic`` become the size. Within a data loader they must be equal before: then
      they mean the input.
    - ``tile_size`` of ``DenseO2OMosaic`` changes in proportion; as published, it is half of the
      shorter side.
    - ``base_size`` of ``DenseO2OMultiScale``, where it is given, becomes the longer side.
    - Alternatives (``TestTimeAug``, ``RandomChoice``) change in proportion, in steps of 32.

    A text config whose size differs from that of its base calls this function last. Programs that
    only read the file, such as mmdet's ``DetInferencer``, then find that size too.

    Args:
        cfg: A config, or the ``_base_`` of one, changed in place together with its ``image_size``.
        size: Side of a square in pixels, or (height, width); multiples of 32.

    Returns:
        Number of components that were changed.

    Raises:
        ValueError: ``size`` is no such size, or a data loader resizes images to several sizes.

    Example:
        >>> _base_ = './deim_dfine_s.py'
        >>> from deim_mmdet.engine import set_image_size
        >>> image_size = 320
        >>> set_image_size(_base_, image_size)
    """
    new = _height_and_width(size)
    sizes = {name: _fixed_sizes(part, name) for name, part in cfg.items()}
    for name in BUILT:
        if len(sizes.get(name, ())) > 1:
            listed = '; '.join(
                f'{height} x {width} in {", ".join(places)}'
                for (height, width), places in sizes[name].items()
            )
            raise UserError(
                f'image_size={size} can take the place of one size, but {name} resizes images to '
                f'several (height x width): {listed}. Write image_size there in place of numbers, '
                'or change the numbers and leave image_size as it is in the base config'
            )
    # The old size of components without a fixed size: that of the loaders, if it changes.
    default = next((old for old in input_sizes(cfg) if old != new), new)
    # Compute all changes before setting any: a component may stand in several parts of the config.
    changes: dict[int, tuple[dict, dict]] = {}
    for name, part in cfg.items():
        old = next(iter(sizes[name]), default)
        # A variable with several sizes may not be about the input.
        if len(sizes[name]) <= 1:
            for _, component, _ in _components(part):
                if changed := _changes(component, old, new):
                    changes[id(component)] = component, changed
    for component, changed in changes.values():
        component.update(changed)
    cfg['image_size'] = cfg[APPLIED] = size
    return len(changes)


def keep_aspect_ratio(cfg: Config | dict, keep: bool = True) -> int:
    """Let a config fit images into the input with their own proportions, padded to its size.

    ``Resize`` to a fixed size becomes
    :class:`~deim_mmdet.datasets.transforms.letterbox.Letterbox` in training and evaluation; export
    follows the test pipeline. A text config calls this function after :func:`set_image_size`.

    Args:
        cfg: A config, or the ``_base_`` of one, changed in place together with its ``keep_ratio``.
        keep: False does the reverse: ``Letterbox`` becomes ``Resize``, which stretches images.

    Returns:
        Number of components that were changed.
    """
    changed = 0
    for name, part in cfg.items():
        for _, component, _ in _components(part, name):
            is_letterbox = is_component(TRANSFORMS, component, Letterbox)
            if keep and not is_letterbox and _resizes(component):
                component.pop('keep_ratio', None)
                component['type'] = 'Letterbox'
            elif is_letterbox and not keep:
                component.pop('pad_val', None)
                component.update(type='Resize', keep_ratio=False)
            else:
                continue
            changed += 1
    cfg['keep_ratio'] = cfg[APPLIED_RATIO] = keep
    return changed


def input_sizes(cfg: Config | dict) -> dict[Size, list[str]]:
    """The fixed sizes (height, width) that a config's data loaders and hooks resize images to.

    Returns:
        By size, the dotted names of the places that have it. Alternatives don't count.
    """
    return _fixed_sizes({name: cfg.get(name) for name in BUILT})


def _fixed_sizes(part: Any, name: str = '') -> dict[Size, list[str]]:
    sizes: dict[Size, list[str]] = {}
    for place, component, is_choice in _components(part, name):
        if not is_choice and (size := _fixed_size(component)):
            sizes.setdefault(size, []).append(place)
    return sizes


def _height_and_width(size: Any) -> Size:
    sides = [size, size] if isinstance(size, int) else size
    if (
        not isinstance(sides, Sequence)
        or len(sides) != 2
        or not all(type(side) is int and side > 0 and side % SIZE_STEP == 0 for side in sides)
    ):
        raise UserError(
            f'image_size={size} must be a positive multiple of {SIZE_STEP}, or two of them, '
            '(height, width)'
        )
    return sides[0], sides[1]


def _components(
    node: Any, name: str = '', is_choice: bool = False
) -> Iterator[tuple[str, dict, bool]]:
    """Dotted names and configs of the components under ``node``; whether they are alternatives."""
    if isinstance(node, Mapping):
        if 'type' in node:
            yield name, node, is_choice
            kind = component_class(TRANSFORMS, node)
            is_choice = is_choice or (kind is not None and issubclass(kind, CHOICES))
        children = node.items()
    elif isinstance(node, list | tuple):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from _components(child, f'{name}.{key}' if name else key, is_choice)


def _fixed_size(component: Mapping) -> Size | None:
    """(height, width) that a transform resizes images to; None if it isn't the same for all."""
    if not _resizes(component) and not is_component(TRANSFORMS, component, DenseO2OMosaic):
        return None
    scale = component.get('scale')
    if scale is None:
        return None
    width, height = (scale, scale) if isinstance(scale, int) else scale
    return height, width


def _resizes(component: Mapping) -> bool:
    """Whether a transform gives all images the size in its ``scale``."""
    return (
        component.get('scale') is not None
        and not component.get('keep_ratio')
        and is_component(TRANSFORMS, component, Resize)
    )


def _changes(component: Mapping, old: Size, new: Size) -> dict[str, Any]:
    """New values of a component's options that depend on the input's (height, width)."""
    changes: dict[str, Any] = {}
    is_multi_scale = is_component(MODELS, component, DenseO2OMultiScale)
    if is_multi_scale and component.get('base_size') not in (None, max(new)):
        changes['base_size'] = max(new)
    if old == new:
        return changes
    if size := _fixed_size(component):
        height, width = (
            max(1, round(side * after / before / SIZE_STEP)) * SIZE_STEP
            for side, before, after in zip(size, old, new, strict=True)
        )
        changes['scale'] = (width, height)
    if is_component(TRANSFORMS, component, DenseO2OMosaic):
        tile = component.get('tile_size', min(old) // 2)
        changes['tile_size'] = max(1, tile * min(new) // min(old))
    return changes
