"""Modules of a built model that go on as modules of another class."""

from collections.abc import Mapping

from torch import nn


def exchange_classes(model: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Let modules compute as a subclass of theirs does.

    They stay the same objects: parameters, hooks, names and whatever else was set on them are kept,
    and so are references to them.

    Args:
        model: The model, which may be such a module itself.
        classes: The new class for modules of exactly the old one. Both have the same attributes.
    """
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
