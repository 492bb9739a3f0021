import os
import pickle
import subprocess
import sys

from deim_mmdet.checkpoints import safe_globals

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
    return safe_globals.load(path, str(path))


@pytest.fixture
def history(tmp_path):
    """A file with a log history, as mmengine saves it in its checkpoints."""
    path = tmp_path / 'history.pth'
    torch.save(dict(loss=HistoryBuffer([1.0], [1])), path)
    return path


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


def test_torchs_list_stays_as_it_was(history):
    """Neither the import of the package nor loading leaves anything on it, or takes it away."""
    code = f"""
import torch

def foreign():
    # Parts of torch put types of their own on it when they are imported.
    kinds = torch.serialization.get_safe_globals()
    return [kind for kind in kinds if not getattr(kind, '__module__', '').startswith('torch.')]

assert foreign() == []
import deim_mmdet
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
assert foreign() == [], foreign()
torch.serialization.add_safe_globals([HistoryBuffer])
loaded = CheckpointLoader.load_checkpoint({str(history)!r})
assert loaded['loss'].mean() == 1
assert foreign() == [HistoryBuffer], foreign()
"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_torch_alone_could_not_load_them(history):
    """The list is what makes the difference."""
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        torch.load(history, weights_only=True)


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


@pytest.mark.parametrize(
    'content',
    [b'hello', b"_base_ = 'x.py'\n", b'{"a": 1}', bytes(512), b'U\x02\xff\xff.', b'J\x01.'],
    ids=['text', 'a config', 'JSON', 'zeros', 'letters', 'an integer'],
)
def test_other_files_are_no_checkpoints(tmp_path, content):
    path = tmp_path / 'other.pth'
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r'other\.pth is no checkpoint, or is damaged'):
        load(path)


def test_another_archive_is_no_checkpoint(tmp_path):
    path = tmp_path / 'arrays.npz'
    np.savez(path, a=np.zeros(3))
    with pytest.raises(RuntimeError, match=r'arrays\.npz is no checkpoint'):
        load(path)
