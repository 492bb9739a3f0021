"""Sets variables of text configs from outside, with all that the config derives from them.

A config is a Python file: it uses ``max_epochs = 60`` at its top in ``train_cfg`` further down, or
in files that inherit from it. mmengine merges options into the finished config, which would
change the variable and nothing else. Here an option is written into a copy of the file, behind each
assignment of the variable, and the config is read from such copies of the file and its bases.
"""

import ast
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

BASE = '_base_'
# mmengine replaces this by the folder of the file; a copy lies in another folder.
FOLDER = re.compile(r'\{\{\s*fileDirname\s*\}\}')


def set_variables(path: str | Path, options: Mapping[str, Any]) -> Config | None:
    """The config at ``path`` with other values of its variables.

    Args:
        path: The config file.
        options: Value by name. A dotted name, such as ``pipeline.0.prob``, is a part of a variable.

    Returns:
        The config; unchanged where none of its files assigns a variable. None where the config
        can't be copied: it imports its bases (``read_base``), or isn't a Python file.
    """
    path = Path(path)
    if path.suffix != '.py' or _imports_neighbours(path):
        return None
    with tempfile.TemporaryDirectory() as folder:
        copies = _Copies(Path(folder), options)
        return Config.fromfile(copies.of(path.absolute()))


class _Copies:
    """Copies of a config and its bases, with options written into them."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._folder = folder
        self._options = options
        self._made: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """Path of the copy of the file at ``path``, which keeps its name."""
        path = path.resolve()
        if path not in self._made:
            copy = self._folder / str(len(self._made)) / path.name
            copy.parent.mkdir()
            self._made[path] = str(copy)
            copy.write_text(self._with_options(path), encoding='utf-8')
        return self._made[path]

    def _with_options(self, path: Path) -> str:
        folder = str(path.parent)
        text = FOLDER.sub(lambda _: folder, path.read_text(encoding='utf-8'))
        # Lines as ast counts them: str.splitlines would also cut at form feeds and the like.
        lines = text.split('\n')
        # From the last one backwards, so that the line numbers of the others stay true.
        for statement in reversed(ast.parse(text).body):
            name = _assigned(statement)
            if name == BASE:
                bases = ast.literal_eval(statement.value)
                new = (
                    self._base(path, bases)
                    if isinstance(bases, str)
                    else [self._base(path, base) for base in bases]
                )
                lines[statement.lineno - 1 : statement.end_lineno] = [f'{BASE} = {new!r}']
            elif name is not None:
                lines[statement.end_lineno : statement.end_lineno] = self._assignments(name)
        return '\n'.join([*lines, ''])

    def _base(self, path: Path, base: str) -> str:
        # mmdet::… and the like name files of other packages, which stay as they are.
        return base if '::' in base else self.of(path.parent / base)

    def _assignments(self, variable: str) -> list[str]:
        """Statements that set a variable, or its parts, to the options."""
        lines = []
        for option, value in self._options.items():
            name, *parts = option.split('.')
            if name == variable:
                keys = ''.join(f'[{int(part) if part.isdigit() else part!r}]' for part in parts)
                lines.append(f'{name}{keys} = {value!r}')
        return lines


def _imports_neighbours(path: Path) -> bool:
    nodes = ast.walk(ast.parse(path.read_text(encoding='utf-8')))
    return any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)


def _assigned(statement: ast.stmt) -> str | None:
    """The variable that a statement assigns; None if it assigns none."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return target.id if isinstance(target, ast.Name) else None
    return None
