"""Fixtures for all tests: one thread, mmdet's scope, and data beside the repository."""

import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope

import deim_mmdet  # noqa: F401  (registers the components)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tests'))


@pytest.fixture(autouse=True, scope='session')
def _one_thread_and_scope():
    torch.set_num_threads(1)
    init_default_scope('mmdet')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope='session')
def shared_dir() -> Path:
    """Folder with data too large for the repository; tests that need it skip without it."""
    path = Path(os.environ.get('DEIM_MMDET_SHARED', ROOT.parent / 'shared'))
    if not path.is_dir():
        pytest.skip(f'{path} is absent: set DEIM_MMDET_SHARED to the folder with data/bccd')
    return path
