"""Reads the arguments of a class from a config."""

import inspect
from collections.abc import Mapping
from typing import Any

from deim_mmdet.utils.components import component_class

from mmdet.registry import MODELS


def with_defaults(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a config gives to a class, with the defaults of the others."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(config)


def head_settings(kind: type, head: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a composed head's config, of its query selection and of its decoder."""
    settings = with_defaults(kind, head)
    for part in ('query_selection', 'decoder'):
        config = {'type': kind.default_types[part], **settings[part]}
        settings |= with_defaults(component_class(MODELS, config), config)
    return settings
