"""What a config says about the arguments of a class."""

import inspect
from typing import Any

from mmengine.config import ConfigDict


def with_defaults(cls: type, config: ConfigDict) -> dict[str, Any]:
    """The arguments that a config gives to a class, with the defaults of the others."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(config)
