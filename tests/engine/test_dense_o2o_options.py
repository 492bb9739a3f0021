"""Options of Dense O2O's transforms that a config says once."""

from deim_mmdet.engine import set_dense_o2o
from deim_mmdet.engine.config import load_config

import pytest
import toy

CONFIG = f"""
_base_ = '{toy.ROOT}/configs/deim_dfine_n.py'
from deim_mmdet.engine import set_dense_o2o
min_box_size = 12
set_dense_o2o(_base_, min_box_size=min_box_size, mosaic_prob=0.3)
"""


def in_force(cfg):
    """(share of mosaics, least sizes) of the pipeline that trains, and of the variable."""
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.train_pipeline):
        mixed = next(t for t in pipeline if t.type == 'DenseO2O')
        tiny = next(t for t in pipeline if t.type == 'DropTinyBoxes')
        yield mixed.mosaic_prob, mixed.min_size, tiny.min_size


def test_a_config_says_them_once_and_options_change_them(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text(CONFIG)
    cfg = load_config(str(path))
    assert [*in_force(cfg)] == [(0.3, 12, 12)] * 2
    assert (cfg.mosaic_prob, cfg.min_box_size) == (0.3, 12)
    cfg = load_config(str(path), {'min_box_size': 5})
    assert [*in_force(cfg)] == [(0.3, 5, 5)] * 2
    plain = load_config(f'{toy.ROOT}/configs/deim_dfine_n.py', {'mosaic_prob': 0.75})
    assert [*in_force(plain)] == [(0.75, 1, 1)] * 2


def test_what_nothing_takes_is_refused():
    with pytest.raises(TypeError, match=r"\['size'\] must be among \['min_box_size', 'mosaic"):
        set_dense_o2o({}, size=3)
    with pytest.raises(ValueError, match='no transform that takes mosaic_prob'):
        set_dense_o2o(dict(train_pipeline=[dict(type='DropTinyBoxes')]), mosaic_prob=0.5)
