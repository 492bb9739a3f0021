"""Renaming of parameters by pairs of name templates."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .errors import UserError
from .text import some

# Parts of a name that both sides share: indices, any number of parts, the last part.
_FIELDS = dict(i=r'\d+', j=r'\d+', path=r'\w+(?:\.\w+)*', leaf=r'\w+')


class NameTable:
    """Renames by pairs of templates; the first pair that fits holds.

    Args:
        pairs: Templates of the given name and of the other, with the same fields: ``{i}``, ``{j}``,
            ``{path}``, ``{leaf}``.
        derived: Given names without another name, as the other side computes what they stand for.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], derived: re.Pattern | None = None) -> None:
        self._rules = [(_pattern(source), target) for source, target in pairs]
        self._derived = derived

    def __call__(self, name: str) -> str | None:
        """The other name; None for a derived one.

        Raises:
            KeyError: No pair fits.
        """
        if self._derived is not None and self._derived.fullmatch(name):
            return None
        for pattern, target in self._rules:
            if match := pattern.fullmatch(name):
                return target.format(**match.groupdict())
        raise KeyError(name)

    def renamed(self, state_dict: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
        """A state dict by the other names, without what is derived.

        Args:
            state_dict: Tensors by the given names.
            owner: Whose names these are, for the message.

        Raises:
            ValueError: No pair fits some names, or two names of one parameter hold different
                values; the message lists them.
        """
        renamed, unknown, differing = {}, [], []
        for name, tensor in state_dict.items():
            try:
                new_name = self(name)
            except KeyError:
                unknown.append(name)
                continue
            if new_name is None:
                continue
            first = renamed.setdefault(new_name, tensor)
            # NaN is no reason to call two copies different.
            if first is not tensor and not torch.equal(first.nan_to_num(), tensor.nan_to_num()):
                differing.append(name)
        if unknown:
            raise UserError(
                f'{len(unknown)} of {len(state_dict)} names are not of {owner}: {some(unknown)}'
            )
        if differing:
            raise UserError(
                f'parameters that are stored twice differ from their second copy: {some(differing)}'
            )
        return renamed


def _pattern(template: str) -> re.Pattern:
    text = re.escape(template).replace(r'\{', '{').replace(r'\}', '}')
    return re.compile(text.format(**{name: f'(?P<{name}>{p})' for name, p in _FIELDS.items()}))
