"""Configs that name their components in other ways than text configs do."""

from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine.config.lazy import LazyObject

#: As pure-Python configs hold types after and before they are imported, and as dumped ones do.
SPELLINGS = ('class', 'lazy', 'path')
REGISTRIES = (DATASETS, TRANSFORMS, MODELS, HOOKS, OPTIM_WRAPPERS, METRICS)


def spelled(node, spelling):
    """A copy of a config's part with every registered name of a type spelled so."""
    if isinstance(node, list | tuple):
        return type(node)(spelled(child, spelling) for child in node)
    if not isinstance(node, dict):
        return node
    copy = {key: spelled(value, spelling) for key, value in node.items()}
    if isinstance(copy.get('type'), str):
        found = (registry.get(copy['type']) for registry in REGISTRIES)
        kind = next((kind for kind in found if kind is not None), None)
        if isinstance(kind, type):
            copy['type'] = {
                'class': kind,
                'lazy': LazyObject(kind.__module__, kind.__name__),
                'path': f'{kind.__module__}.{kind.__qualname__}',
            }[spelling]
    return copy
