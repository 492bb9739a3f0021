"""Renaming of parameters by pairs of name templates."""

import re
from collections.abc import Iterable

# Parts of a name that both sides share: indices, any number of parts, the last part.
_FIELDS = dict(i=r'\d+', j=r'\d+', path=r'\w+(?:\.\w+)*', leaf=r'\w+')


class NameTable:
    """Renames by pairs of templates; the first pair that fits holds.

    Args:
        pairs: Templates of the given name and of the other, with the same fields: ``{i}``, ``{j}``,
            ``{path}``, ``{leaf}``.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._rules = [(_pattern(source), target) for source, target in pairs]

    def __call__(self, name: str) -> str:
        """The other name.

        Raises:
            KeyError: No pair fits.
        """
        for pattern, target in self._rules:
            if match := pattern.fullmatch(name):
                return target.format(**match.groupdict())
        raise KeyError(name)


def _pattern(template: str) -> re.Pattern:
    text = re.escape(template).replace(r'\{', '{').replace(r'\}', '}')
    return re.compile(text.format(**{name: f'(?P<{name}>{p})' for name, p in _FIELDS.items()}))
