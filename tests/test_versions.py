import pytest
import torch

import deim_mmdet


def test_supported_versions_pass():
    deim_mmdet.check_versions()


@pytest.mark.parametrize('version', ['2.5.1', '3.0.0+cu130'])
def test_other_versions_are_refused(monkeypatch, version):
    monkeypatch.setattr(torch, '__version__', version)
    with pytest.raises(ImportError, match=r'works with torch >= 2.6.0, < 3.0.0.*pip install'):
        deim_mmdet.check_versions()
