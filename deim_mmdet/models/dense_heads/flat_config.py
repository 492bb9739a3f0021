"""Settings of version 0.1, where all parts of a head shared one flat config."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from ...utils.errors import UserTypeError

#: Where each setting of version 0.1 is today.
PLACES: Mapping[str, tuple[str, ...]] = dict(
    act=('query_selection.act', 'decoder.act'),
    num_queries=('query_selection.num_queries',),
    matcher=('criterion.matcher',),
    max_per_img=('postprocess.max_per_img',),
    **{
        name: (f'decoder.{name}',)
        for name in (
            *('num_points', 'num_layers', 'num_eval_layers', 'num_heads', 'ffn_channels'),
            *('reg_max', 'reg_scale', 'query_position_channels', 'sampling'),
        )
    },
    **{
        name: (f'criterion.terms.{name}.loss',)
        for name in ('loss_cls', 'loss_bbox', 'loss_iou', 'loss_fgl', 'loss_ddf')
    },
)


def composed(parts: Mapping[str, Any], flat: Mapping[str, Any]) -> tuple[dict, str]:
    """Put flat settings into the configs of the parts.

    Args:
        parts: Config of each part by its name.
        flat: Settings of version 0.1.

    Returns:
        The parts with these settings, and how to write them now.

    Raises:
        TypeError: There is no such setting.
    """
    unknown = sorted(flat.keys() - PLACES.keys())
    if unknown:
        raise UserTypeError(
            f'a head has no setting {", ".join(unknown)}. Its parts, {", ".join(sorted(parts))}, '
            'have their settings in configs of their own: see docs/components.md'
        )
    placed = {place: value for name, value in flat.items() for place in PLACES[name]}
    config = Config(dict(parts))
    config.merge_from_dict(placed)
    config = config.to_dict()
    _drop_marks(config)
    return config, ', '.join(f'{name} is now {" and ".join(PLACES[name])}' for name in flat)


def setting(head: Mapping[str, Any], name: str) -> Any:
    """A setting of a head's config, flat or in its part; None where it isn't given."""
    part, key = PLACES[name][0].split('.')
    return head.get(name, (head.get(part) or {}).get(key))


def _drop_marks(node: Any) -> None:
    """Remove ``_delete_``, which mmengine leaves where there is nothing to delete."""
    if isinstance(node, dict):
        node.pop('_delete_', None)
        for value in node.values():
            _drop_marks(value)
