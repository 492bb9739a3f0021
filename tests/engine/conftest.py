import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True)
def _mmdet_scope():
    init_default_scope('mmdet')
