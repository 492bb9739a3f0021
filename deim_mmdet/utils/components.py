"""The class that a config means by its ``type``: a registered name, a path, or the class itself."""

from collections.abc import Iterator, Mapping

from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import Registry


def component_class(registry: Registry, config: object) -> type | None:
    """The class that ``config['type']`` stands for.

    Text configs name a component (``'Resize'``, ``'mmdet.Resize'``) or give its path
    (``'mmdet.datasets.transforms.Resize'``, as dumped configs do); pure-Python configs hold the
    class. All of them mean the same.

    Args:
        registry: Where components of this kind are registered.
        config: Config of a component, or anything else.

    Returns:
        The class; None where ``config`` has no type, or an unknown one.
    """
    try:
        kind = config.get('type') if isinstance(config, Mapping) else None
        if isinstance(kind, LazyObject | LazyAttr):
            kind = kind.build()
        elif isinstance(kind, str):
            kind = registry.get(kind)
    # mmengine's registry raises RuntimeError where importing a path fails.
    except (ImportError, RuntimeError):
        return None
    return kind if isinstance(kind, type) else None


def is_component(registry: Registry, config: object, kind: type) -> bool:
    """Whether a config is that of a component of class ``kind`` or of a subclass."""
    found = component_class(registry, config)
    return found is not None and issubclass(found, kind)


def find_components(registry: Registry, node: object, kind: type) -> Iterator[Mapping]:
    """All configs in ``node`` of components of class ``kind`` or of a subclass, in order."""
    if is_component(registry, node, kind):
        yield node
    elif isinstance(node, Mapping | list | tuple):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from find_components(registry, child, kind)


def find_component(registry: Registry, node: object, kind: type) -> Mapping | None:
    """The first of :func:`find_components`."""
    return next(find_components(registry, node, kind), None)


def dataset_configs(config: object) -> Iterator[dict]:
    """Configs of the data sets in the config of a data set, without their wrappers."""
    for key in ('dataset', 'datasets'):
        inner = config.get(key) if isinstance(config, dict) else None
        if inner is not None:
            for child in inner if isinstance(inner, list | tuple) else [inner]:
                yield from dataset_configs(child)
            return
    if isinstance(config, dict):
        yield config


def component_name(config: Mapping) -> str:
    """Name of a config's component, for messages and figures."""
    kind = config.get('type')
    # A lazy object prints as its name.
    return kind.__name__ if isinstance(kind, type) else str(kind).rsplit('.', 1)[-1]


def merged(default: Mapping, given: Mapping) -> dict:
    """The config ``default``, changed by the settings of ``given``.

    Nested configs are merged, too. A config of another type replaces the default as a whole.
    """
    if given.get('type', default.get('type')) != default.get('type'):
        return dict(given)
    result = {**default, **given}
    for key in default.keys() & given.keys():
        if isinstance(default[key], Mapping) and isinstance(given[key], Mapping):
            result[key] = merged(default[key], given[key])
    return result
