"""Imports of the package point down: each room knows those below it, and no room above.

Read from the source, imports within functions included.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'deim_mmdet'

# What each room may import of the package, beside itself.
SIDE = {'compat', 'stack', 'utils', 'version'}
MODELS = {'ops', *SIDE}
BOTTOM = {'models', 'datasets', 'checkpoints', 'evaluation', *MODELS}
ROOMS = {
    'version': set(),
    'utils': set(),
    'compat': {'utils'},
    'stack': {'version'},
    'ops': SIDE,
    'models': MODELS,
    'datasets': SIDE,
    'visualization': SIDE,
    'checkpoints': {'models', *MODELS},
    'evaluation': {'datasets', *SIDE},
    'deployment': BOTTOM,
    'engine': {'deployment', *BOTTOM},
    'data_checks': {'visualization', *BOTTOM},
    'reports': {'data_checks', 'visualization', *BOTTOM},
    # The package itself registers all components when it is imported.
    '__init__': {'engine', 'reports', *BOTTOM},
    '__main__': SIDE,
}
FILES = [path for path in sorted(PACKAGE.rglob('*.py')) if '.mim' not in path.parts]


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imported_modules(source, package):
    """Full names of what a module imports, each with its line.

    Args:
        source: The module's text.
        package: Full name of the package that it is in, from which relative imports start.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split('.')[: 1 - node.level or None] if node.level else []
            parts += [node.module] if node.module else []
            # Whether a name is a module or in one, the parts before it tell the room.
            found += [(node.lineno, '.'.join([*parts, alias.name])) for alias in node.names]
    return found


def rooms_imported(source, package):
    """(line, room) of what a module imports from the package."""
    parts = [(line, name.split('.')) for line, name in imported_modules(source, package)]
    return [(line, name[1]) for line, name in parts if name[0] == 'deim_mmdet' and name[1:]]


def package_of(path):
    return '.'.join(path.relative_to(ROOT).parent.parts)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    above = [
        (line, name)
        for line, name in rooms_imported(path.read_text(), package_of(path))
        if name not in {room, *ROOMS[room]}
    ]
    assert not above, f'{room} knows only itself and {sorted(ROOMS[room])}'


def test_the_wheel_needs_nothing_beside_it():
    beside = {path.stem for path in (ROOT / 'benchmarks').iterdir()} | {'tools', 'tests', 'configs'}
    for path in FILES:
        for line, name in imported_modules(path.read_text(), package_of(path)):
            assert name.split('.')[0] not in beside, f'{path}:{line}'


def test_no_room_is_its_own_floor():
    """Following the rule never leads back: the rooms have an order."""
    for start in ROOMS:
        reached, new = set(), {start}
        while new := {below for room in new for below in ROOMS[room]} - reached:
            reached |= new
        assert start not in reached


@pytest.mark.parametrize(
    ('source', 'rooms'),
    [
        ('from ..checkpoints import files', ['checkpoints']),
        ('from .. import compat', ['compat']),
        ('from .layers import basic', ['models']),
        ('from . import layers', ['models']),
        ('def f():\n    from ..engine.runner import DEIMRunner', ['engine']),
        ('import deim_mmdet.engine, torch', ['engine']),
        ('from deim_mmdet import engine, utils', ['engine', 'utils']),
        ('from deim_mmdet.utils.stage import Stage', ['utils']),
        ('import deim_mmdet', []),
        ('from torch.utils import checkpoint', []),
    ],
)
def test_imports_are_found(source, rooms):
    assert [room for _, room in rooms_imported(source, 'deim_mmdet.models')] == rooms
