"""Installing the package compiles the operators where that is possible, and works where not."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# Tells what the installed package has, and the gradient of a sum of samples of ones.
USE = """
import torch
from deim_mmdet.ops import compiled, deformable_attention
value = torch.ones(1, 6, 1, 3, requires_grad=True)
places, weights = torch.full((1, 1, 1, 2, 2), 0.5), torch.full((1, 1, 1, 2), 0.5)
deformable_attention(value, [(2, 3)], places, weights, [2]).sum().backward()
print(compiled.DEVICES, value.grad.sum().item())
"""


def run(*command, cwd, **env):
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(kind, source, out, **env):
    """Build as pip does; returns the file and what was said."""
    code = f'from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})'
    out.mkdir()
    said = run(sys.executable, '-c', code, cwd=source, **env)
    (built,) = out.iterdir()
    return built, said


def use(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / 'site')
    # Libraries may lie on this path, too.
    path = os.pathsep.join([str(folder / 'site'), os.environ.get('PYTHONPATH', '')])
    return run(sys.executable, '-W', 'default', '-c', USE, cwd=folder, PYTHONPATH=path)


@pytest.fixture(scope='module')
def unpacked_sdist(tmp_path_factory):
    """What PyPI's users get."""
    folder = tmp_path_factory.mktemp('sdist')
    ignore = shutil.ignore_patterns('__pycache__', '.mim', '*.so')
    for name in ('deim_mmdet', 'configs', 'tools'):
        shutil.copytree(ROOT / name, folder / 'checkout' / name, ignore=ignore)
    files = ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'model-index.yml', 'README.md', 'LICENSE')
    for name in files:
        shutil.copy2(ROOT / name, folder / 'checkout')
    sdist, _ = build('sdist', folder / 'checkout', folder / 'dist', DEIM_MMDET_WITH_OPS='0')
    shutil.unpack_archive(sdist, folder / 'unpacked')
    (unpacked,) = (folder / 'unpacked').iterdir()
    return unpacked


@pytest.fixture
def source(unpacked_sdist, tmp_path):
    """A copy of its own for each build, which leaves things behind."""
    return shutil.copytree(unpacked_sdist, tmp_path / 'source')


def nvcc_fits_torch():
    """Whether nvcc is there, and of the major version of CUDA that torch was built with."""
    if not torch.version.cuda or shutil.which('nvcc') is None:
        return False
    major = re.search(r'release (\d+)\.', run('nvcc', '--version', cwd=ROOT))[1]
    return major == torch.version.cuda.split('.')[0]


def test_wheel_holds_operators_for_this_machine(source, tmp_path):
    if shutil.which('g++') is None:
        pytest.skip('there is no g++')
    wheel, said = build('wheel', source, tmp_path / 'dist')
    assert 'linux' in wheel.name
    out = use(wheel, tmp_path)
    assert "'cpu'" in out
    # Without a GPU, or with parts of CUDA alone, it may not compile, and says why.
    tried = bool(torch.version.cuda and shutil.which('nvcc'))
    assert ("'cuda'" in out) == (tried and 'not compiled, it will be slower: for GPUs' not in said)
    assert "'cuda'" in out or not (torch.cuda.is_available() and nvcc_fits_torch())
    assert '3.0' in out
    assert 'slower' not in out


def test_without_a_compiler_the_package_is_installed_and_slower(source, tmp_path):
    wheel, said = build('wheel', source, tmp_path / 'dist', CXX='false', CC='false')
    assert 'operators not compiled, it will be slower' in said
    out = use(wheel, tmp_path)
    assert '[] 3.0' in out
    assert out.count('Deformable attention runs in pure PyTorch') == 1
    assert 'not compiled when the package was installed' in out


def test_operators_can_be_left_out(source, tmp_path):
    wheel, _ = build('wheel', source, tmp_path / 'dist', DEIM_MMDET_WITH_OPS='0')
    assert wheel.name.endswith('py3-none-any.whl')


def test_library_is_not_dirty_in_git():
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout')
    path = 'deim_mmdet/ops/_C.so'
    assert run('git', 'check-ignore', path, cwd=ROOT).split() == [path]
