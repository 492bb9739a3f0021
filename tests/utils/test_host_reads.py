"""On a GPU tools/dev/check_gpu.sh tries it; here torch's switch is replaced."""

from deim_mmdet.utils.host_reads import allowed_sync

import pytest
import torch


@pytest.fixture
def modes(monkeypatch):
    """The modes that torch had, one after another; reading gives the last."""
    had = [2]
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_sync_debug_mode', lambda: had[-1])
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', had.append)
    return had


def test_a_marked_read_is_allowed_and_what_follows_is_not(modes):
    with allowed_sync():
        assert modes == [2, 0]
    assert modes == [2, 0, 2]
    with pytest.raises(ValueError, match='broken'), allowed_sync():
        raise ValueError('broken')
    assert modes[-1] == 2


def test_nothing_is_switched_where_reads_are_not_watched(modes):
    modes[:] = [0]
    with allowed_sync():
        pass
    assert modes == [0]


def test_no_gpu_is_started(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: False)
    monkeypatch.setattr(torch.cuda, 'get_sync_debug_mode', lambda: pytest.fail('it starts CUDA'))
    with allowed_sync():
        pass
