import os
import subprocess
import sys

from deim_mmdet.checkpoints.safe_globals import explain_load_errors

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer


class Foreign:
    """A type that no checkpoint of ours holds."""


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Attribute:
    """Pickles as getattr(owner, name), the way a HistoryBuffer refers to its methods."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def load(path):
    with explain_load_errors(str(path)):
        return torch.load(path)


def test_log_history_and_numpy_scalars_load(tmp_path):
    history = HistoryBuffer()
    for value in (3.0, 1.0, 2.0):
        history.update(value)
    path = tmp_path / 'history.pth'
    torch.save(dict(loss=history, best=np.float64(0.5), step=np.int64(3), w=torch.ones(2)), path)
    loaded = load(path)
    assert loaded['loss'].statistics('min') == 1.0
    assert loaded['loss'].mean() == 2.0
    assert (loaded['best'], loaded['step']) == (0.5, 3)


def test_the_list_outlasts_that_of_another_library(tmp_path):
    """onedl-mmengine's loader takes what it has put on torch's list off again."""
    path = tmp_path / 'history.pth'
    torch.save(dict(loss=HistoryBuffer([1.0], [1])), path)
    types = [HistoryBuffer, np.ndarray, np.dtype, type(np.dtype('float64'))]
    with torch.serialization.safe_globals(types):
        pass
    assert load(path)['loss'].mean() == 1.0


def test_mmengine_alone_could_not_load_them(tmp_path):
    """The list is what makes the difference: without this package loading fails."""
    path = tmp_path / 'history.pth'
    torch.save(dict(loss=HistoryBuffer([1.0], [1])), path)
    code = f'import torch, mmengine; torch.load({str(path)!r}, weights_only=True)'
    alone = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert alone.returncode != 0
    assert 'UnpicklingError' in alone.stderr


def test_foreign_type_is_refused_by_name(tmp_path):
    path = tmp_path / 'foreign.pth'
    torch.save(dict(state_dict={}, extra=Foreign()), path)
    with pytest.raises(RuntimeError, match=r'foreign\.pth .*test_safe_globals\.Foreign.*refused'):
        load(path)


def test_code_is_refused_and_does_not_run(tmp_path):
    path, trap = tmp_path / 'evil.pth', tmp_path / 'created'
    torch.save(dict(extra=RunsCode(trap)), path)
    with pytest.raises(RuntimeError, match=r'evil\.pth .*mkdir.* refused'):
        load(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ('owner', 'name'), [(HistoryBuffer, '__init__'), (np.ndarray, 'tofile'), (dict, 'get')]
)
def test_getattr_reaches_nothing_else(tmp_path, owner, name):
    path = tmp_path / 'getattr.pth'
    torch.save(dict(extra=Attribute(owner, name)), path)
    with pytest.raises(RuntimeError, match='refused'):
        load(path)


@pytest.mark.parametrize(('kept', 'word'), [(200, 'damaged'), (0, 'empty')])
def test_damaged_file(tmp_path, kept, word):
    path = tmp_path / 'cut.pth'
    torch.save(dict(w=torch.ones(100)), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RuntimeError, match=rf'cut\.pth.*{word}'):
        load(path)
