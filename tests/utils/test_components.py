from deim_mmdet.datasets import CheckedCocoDataset
from deim_mmdet.engine.hooks import DenseO2OScheduleHook
from deim_mmdet.utils.components import (
    component_class,
    component_name,
    find_component,
    is_component,
)

import mmcv.transforms
import mmdet.datasets.transforms
import pytest
from mmdet.registry import DATASETS, HOOKS, TRANSFORMS
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyObject

RESIZE = mmdet.datasets.transforms.Resize
KINDS = {
    'name': 'Resize',
    'scoped name': 'mmdet.Resize',
    'path': 'mmdet.datasets.transforms.Resize',
    'path of its module': 'mmdet.datasets.transforms.transforms.Resize',
    'class': RESIZE,
    'lazy object': LazyObject('mmdet.datasets.transforms', 'Resize'),
    'attribute of a lazy module': LazyObject('mmdet.datasets.transforms').Resize,
}


@pytest.mark.parametrize('container', [dict, ConfigDict])
@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_every_spelling_means_the_class(kind, container):
    config = container(type=kind, scale=(8, 8))
    assert component_class(TRANSFORMS, config) is RESIZE
    assert component_name(config) == 'Resize'
    assert is_component(TRANSFORMS, config, mmcv.transforms.Resize)
    assert not is_component(TRANSFORMS, config, mmdet.datasets.transforms.FixShapeResize)


@pytest.mark.parametrize(
    'config',
    [
        dict(type='NoSuchTransform'),
        dict(type='mmdet.NoSuchTransform'),
        dict(type='no_such_package.transforms.Resize'),
        dict(type=LazyObject('no_such_package', 'Resize')),
        # A module of that name can be imported, but is no component.
        dict(type='json'),
        dict(type=''),
        dict(type=None),
        dict(scale=(8, 8)),
        'Resize',
        None,
    ],
    ids=str,
)
def test_what_is_not_known_has_no_class(config):
    assert component_class(TRANSFORMS, config) is None
    assert not is_component(TRANSFORMS, config, object)


def test_names_are_given_also_of_unknown_components():
    assert component_name(dict(type='NoSuchTransform')) == 'NoSuchTransform'
    assert component_name(dict(type='other.NoSuchTransform')) == 'NoSuchTransform'


def test_the_first_of_nested_configs_is_found():
    inner = dict(type=CheckedCocoDataset, ann_file='a')
    config = dict(
        type='ConcatDataset',
        datasets=[dict(type='RepeatDataset', dataset=inner), dict(type='CheckedCocoDataset')],
    )
    assert find_component(DATASETS, config, CheckedCocoDataset) is inner
    assert find_component(HOOKS, config, DenseO2OScheduleHook) is None


PURE = """
from mmengine.config import read_base
from deim_mmdet.engine.hooks import DenseO2OScheduleHook
custom_hooks = [dict(type=DenseO2OScheduleHook, stages=(1, 2, 3))]
"""


def test_pure_python_configs_and_their_dumps(tmp_path):
    path = tmp_path / 'pure.py'
    path.write_text(PURE)
    config = Config.fromfile(path)
    config.dump(tmp_path / 'dumped.py')
    for read in (config, Config.fromfile(tmp_path / 'dumped.py')):
        found = find_component(HOOKS, read.custom_hooks, DenseO2OScheduleHook)
        assert tuple(found['stages']) == (1, 2, 3)
