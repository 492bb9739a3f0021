"""Packages that are missing, or there but of no use."""

import sys

import pytest
from measuring.installed import PACKAGES, reason_against


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Function: replace a package by one with this code."""
    replaced = []

    def install(package, code):
        replaced.append(package)
        (tmp_path / f'{package}.py').write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        for name in [n for n in sys.modules if n.split('.')[0] == package]:
            monkeypatch.delitem(sys.modules, name)

    yield install
    # The real ones come back, or are imported when somebody wants them.
    for name in [n for n in sys.modules if n.split('.')[0] in replaced]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ('backend', 'package'), [(backend, each) for backend in PACKAGES for each in PACKAGES[backend]]
)
def test_a_package_that_raises_counts_as_missing(installed, backend, package):
    for other in PACKAGES[backend]:
        installed(other, '')
    installed(package, 'raise OSError("libfirst.so: undefined symbol\\nmore")')
    reason = reason_against(backend)
    assert reason.startswith(f'{package} is not installed in a form')
    assert reason.endswith('(OSError: libfirst.so: undefined symbol)')


def test_a_package_without_what_is_used_counts_as_missing(installed):
    installed('transformers', '__version__ = "4.0"')
    assert 'DFineConfig' in reason_against('transformers')
    installed('dfine', '')
    assert "No module named 'dfine.backends'" in reason_against('reference')


def test_a_missing_package_comes_with_its_command(monkeypatch):
    monkeypatch.setattr('deim_mmdet.deployment.extras.find_spec', lambda name: None)
    assert 'pip install tensorrt' in reason_against('tensorrt')
    assert reason_against('pytorch') == ''
