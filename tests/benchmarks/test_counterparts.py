"""Models that the other implementations have, and those that they would be mistaken for."""

from pathlib import Path

import pytest
from golden import CONFIGS
from measuring.counterparts import check_counterpart, missing_counterpart
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from typed_configs import SPELLINGS, spelled


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def model(name, **options):
    cfg = Config.fromfile(Path(CONFIGS) / f'{name}.py')
    cfg.merge_from_dict(options)
    return cfg.model


@pytest.mark.parametrize('spelling', SPELLINGS)
@pytest.mark.parametrize('name', ['deim_dfine_n', 'dfine_x', 'rtdetrv2_r18', 'deim_rtdetrv2_r101'])
def test_networks_of_both_papers_are_there(name, spelling):
    config = ConfigDict(spelled(model(name), spelling))
    assert missing_counterpart('transformers', config) == ''
    missing = missing_counterpart('reference', config)
    assert missing == ('' if 'dfine' in name else 'pydfine has no model with a RTDETRHead')
    assert missing_counterpart('fused', config) == ''


@pytest.mark.parametrize('backend', ['reference', 'transformers'])
@pytest.mark.parametrize(
    ('name', 'options', 'reason'),
    [
        ('deimv2_s', {}, 'with a ViTAdapter'),
        ('ecdet_s', {}, 'with a ECViT'),
        ('deimv2_n', {}, 'with a DFINEHead and a HybridEncoder of kind deimv2_n'),
        ('deimv2_pico', {}, 'with an HGNetv2 Pico'),
        ('convergence/study_bccd_deim', {}, 'with a ResNet'),
        ('own_data/grey', {}, 'for images of 1 channels'),
        ('deim_dfine_n', {'model.neck': None}, 'without a neck'),
        (
            'deim_dfine_n',
            {'model.bbox_head.decoder.type': 'DEIMv2Decoder'},
            'with a DEIMv2Decoder',
        ),
        (
            'deim_dfine_n',
            {'model.bbox_head.query_selection.project': False},
            'whose query selection has no projection',
        ),
    ],
)
def test_others_are_refused(backend, name, options, reason):
    with pytest.raises(ValueError, match=f'has no model {reason}$'):
        check_counterpart(backend, model(name, **options))
