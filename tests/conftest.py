"""Fixtures for all tests: one thread, mmdet's scope, and data beside the repository."""

import functools
import gc
import http.server
import os
import sys
import threading
from pathlib import Path

import deim_mmdet  # noqa: F401  (registers the components)

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.visualization import Visualizer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'tests'), str(ROOT / 'benchmarks')]

from starting import leave_configs_unformatted  # noqa: E402


@pytest.fixture(autouse=True, scope='session')
def _short_starts():
    leave_configs_unformatted()
    # mmengine's data sets collect garbage when they are made. All modules are kept out of that.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope='session')
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope='session')
def _first_scope():
    init_default_scope('mmdet')


@pytest.fixture(autouse=True)
def _scope():
    yield
    # A test of mmengine's own runner leaves another one.
    init_default_scope('mmdet')


@pytest.fixture(autouse=True, scope='session')
def _own_cache(tmp_path_factory):
    os.environ['DEIM_MMDET_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def forget_visualizers():
    """Function for what a new process knows of visualisers: nothing. Called after each test."""

    # mmengine keeps them by name, and hooks take the one whose name came last.
    def forget():
        for kind in (Visualizer, *Visualizer.__subclasses__()):
            kind._instance_dict.clear()

    yield forget
    forget()


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


@pytest.fixture
def file_server(tmp_path_factory):
    """Address of a local file server, the folder that it serves, and the list of its requests."""
    folder, requests = tmp_path_factory.mktemp('served'), []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}', folder, requests
        server.shutdown()
        thread.join()


@pytest.fixture
def hub_folder(tmp_path):
    """An empty folder for downloads, in place of torch's."""
    old, folder = torch.hub.get_dir(), tmp_path / 'hub'
    torch.hub.set_dir(str(folder))
    yield folder
    torch.hub.set_dir(old)
