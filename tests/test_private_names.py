"""Private names of other libraries stay in ``compat.py``: any version may rename them unannounced.

A name is private where it begins with one underscore. It is another library's where this package
doesn't define it, or where a class that one of ours derives from has it, as a method or as an
attribute that it sets on itself.
"""

import ast
import importlib
import inspect
import textwrap
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'deim_mmdet'
FILES = [
    path
    for folder in ('deim_mmdet', 'tools', 'benchmarks')
    for path in sorted((ROOT / folder).rglob('*.py'))
    if path != PACKAGE / 'compat.py'
]
# Python documents these of its named tuples.
NAMED_TUPLE = {'_replace', '_asdict', '_fields', '_make'}
ALLOWED = {
    ('deim_mmdet/engine/schedulers/flat_cosine_lr.py', '_get_value'): (
        'the method by which a scheduler of mmengine computes its values: its documentation tells '
        'users to define it'
    ),
    ('deim_mmdet/utils/classes.py', '__class__'): (
        'Python lets objects change their class; torch does so with modules that it parametrizes'
    ),
    ('benchmarks/trainer_iteration.py', '_python_dispatch'): (
        'the module of a class that is public; the script measures older versions of the package '
        'too, whose compat.py lacks it'
    ),
    ('benchmarks/measuring/half_products.py', '_python_dispatch'): (
        'the module of a class that is public'
    ),
    ('benchmarks/measuring/rounding.py', '_generate_anchors'): (
        "the reference's, which makes anchors in single precision and has no other way to say so"
    ),
}
# It takes the place of a part of torch. A benchmark and its test alone run it.
ALLOWED |= {
    ('benchmarks/measuring/simulated_gpu.py', name): 'the simulated GPU'
    for name in (
        *('_subclasses', '_python_dispatch', '_pytree', '_cdata'),
        '_scaled_dot_product_efficient_attention',
    )
}


def is_private(name):
    return name.startswith('_') and not name.startswith('__') and name != '_'


def is_stored(node, kind):
    return isinstance(node, kind) and isinstance(node.ctx, ast.Store)


def is_own_object(node):
    """Whether an expression is ``self``, ``cls`` or ``super()``."""
    if isinstance(node, ast.Call):
        node = node.func
    return isinstance(node, ast.Name) and node.id in ('self', 'cls', 'super')


def defined_names(tree):
    """Private names that a file defines: functions, classes, variables, attributes of ``self``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif is_stored(node, ast.Name):
            names.add(node.id)
        elif is_stored(node, ast.Attribute) and is_own_object(node.value):
            names.add(node.attr)
    return set(filter(is_private, names))


def imported_names(node):
    """Private parts of what an import statement takes from another package."""
    if isinstance(node, ast.Import):
        parts = [part for alias in node.names for part in alias.name.split('.')]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        parts = [*node.module.split('.'), *(alias.name for alias in node.names)]
    else:
        return []
    return [] if parts[0] == 'deim_mmdet' else list(filter(is_private, parts))


def foreign_names(source, package_names=frozenset(), inherited=frozenset()):
    """Uses of other libraries' private names, as (line, name).

    Args:
        source: Text of a file.
        package_names: Private names that any file of the package defines.
        inherited: Private names of the libraries' classes that the file's classes derive from.
    """
    tree = ast.parse(source)
    own = defined_names(tree)
    found = []
    for node in ast.walk(tree):
        names = imported_names(node)
        if isinstance(node, ast.Attribute):
            known = own | package_names if is_own_object(node.value) else own
            # A class that is put in the place of an object's own is no better.
            replaced = node.attr == '__class__' and is_stored(node, ast.Attribute)
            foreign = node.attr not in known or node.attr in inherited
            if replaced or (is_private(node.attr) and foreign):
                names.append(node.attr)
        elif isinstance(node, ast.ClassDef):
            names += [name for name in defined_names(node) if name in inherited]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ('getattr', 'setattr', 'hasattr', 'delattr')
            and isinstance(node.args[1], ast.Constant)
            and is_private(node.args[1].value)
        ):
            names.append(node.args[1].value)
        found += [(node.lineno, name) for name in names if name not in NAMED_TUPLE]
    return sorted(set(found))


@cache
def names_of_class(base):
    """Private names of a library's class: its methods, its attributes, those it sets on itself."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
    except (OSError, TypeError):  # not written in Python
        return set()
    return set(filter(is_private, vars(base))) | defined_names(tree)


@cache
def inherited_names():
    """Private names of the libraries' classes that our classes derive from, by our file."""
    names = {}
    for path in PACKAGE.rglob('*.py'):
        parts = path.relative_to(ROOT).with_suffix('').parts
        module = importlib.import_module('.'.join(parts).removesuffix('.__init__'))
        for kind in vars(module).values():
            if not isinstance(kind, type) or kind.__module__ != module.__name__:
                continue
            for base in kind.__mro__:
                if not base.__module__.startswith('deim_mmdet'):
                    names.setdefault(path, set()).update(names_of_class(base))
    return names


@cache
def package_names():
    return frozenset().union(*(defined_names(ast.parse(path.read_text())) for path in FILES))


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_libraries_are_used_in_compat_alone(path):
    name_of_file = str(path.relative_to(ROOT))
    found = foreign_names(
        path.read_text(), package_names(), frozenset(inherited_names().get(path, ()))
    )
    found = [(line, name) for line, name in found if (name_of_file, name) not in ALLOWED]
    assert not found, f'{name_of_file}: give these a function in deim_mmdet/compat.py'


def test_every_exception_is_needed():
    for name_of_file, name in ALLOWED:
        path = ROOT / name_of_file
        found = foreign_names(
            path.read_text(), package_names(), frozenset(inherited_names().get(path, ()))
        )
        assert name in [name for _, name in found]


@pytest.mark.parametrize(
    ('source', 'name'),
    [
        ('from torch.nn.modules.batchnorm import _BatchNorm', '_BatchNorm'),
        ('import torch._dynamo', '_dynamo'),
        ('from mmengine._strategy import Strategy', '_strategy'),
        ('resumes = runner._resume', '_resume'),
        ('loop._iter = 3', '_iter'),
        ("resumes = getattr(runner, '_resume', False)", '_resume'),
        ('class Hook:\n    def run(self):\n        return self._evaluator', '_evaluator'),
        ('class Flip(RandomFlip):\n    def _flip(self): ...', '_flip'),
        ('class Flip(RandomFlip):\n    _flip = None', '_flip'),
        ('class Flip(RandomFlip):\n    def run(self):\n        super()._flip()', '_flip'),
        ('module.__class__ = Other', '__class__'),
    ],
)
def test_a_private_name_is_found(source, name):
    assert [found for _, found in foreign_names(source, inherited=frozenset({'_flip'}))] == [name]


def test_own_names_are_left_alone():
    source = """
    from .modules import _helper
    class Hook:
        _count = 0
        def __init__(self):
            self._seen = set()
        def _note(self, other):
            self._inherited_from_ours(other._seen, point._replace(x=1), self.__dict__)
    """
    assert not foreign_names(textwrap.dedent(source), frozenset({'_inherited_from_ours'}))
