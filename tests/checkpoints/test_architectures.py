"""Which model a state dict is of, from its names and shapes alone."""

from deim_mmdet.checkpoints import convert_reference_state_dict
from deim_mmdet.checkpoints.architectures import (
    BACKBONES,
    backbone,
    compare,
    complete,
    detector,
    identify,
)
from deim_mmdet.checkpoints.published import config_path, published_models

import pytest
import torch
from reference_checkpoints import MODELS, reference_shapes

# Sizes of DEIM-D-FINE and D-FINE with the same state dict; L and X of D-FINE have frozen norms.
TWINS = {'n', 's', 'm'}


def without_memory(architecture):
    return {name: torch.empty(shape, device='meta') for name, shape in architecture.shapes.items()}


def converted(name, num_classes=80):
    return convert_reference_state_dict(reference_shapes(name, num_classes))


@pytest.mark.parametrize('name', MODELS)
def test_reference_models_are_recognised(name):
    found = identify(converted(name), file_name=f'{name}_coco.pth')
    assert found.name == name
    assert found.config.model.bbox_head.num_classes == 80


def test_models_of_other_classes_are_recognised():
    found = identify(converted('deim_rtdetrv2_r18', num_classes=7))
    assert found.name == 'deim_rtdetrv2_r18'
    assert found.config.model.bbox_head.num_classes == 7


def test_all_published_models_can_be_told_apart():
    models = published_models()
    assert len({model.config for model in models.values()}) < len(models)
    for name, (path, file_name) in models.items():
        found = identify(without_memory(detector(path, 80)), file_name=file_name)
        assert (found.name, found.doubt) == (path.stem, None), name


@pytest.mark.parametrize('name', MODELS)
def test_parameters_tell_all_but_the_activations_of_some(name):
    if 'dfine' in name and name[-1] in TWINS:
        with pytest.raises(ValueError, match=f'dfine_{name[-1]} and dfine_{name[-1]} have the'):
            identify(converted(name))
    else:
        found = identify(converted(name))
        assert (found.name, found.doubt) == (name, None)


@pytest.mark.parametrize(
    ('file_name', 'expected'),
    [
        ('deim_dfine_hgnetv2_s_coco_120e.pth', 'deim_dfine_s'),
        ('dfine_s_obj2coco.pth', 'dfine_s'),
        ('DEIM_last.pth', 'deim_dfine_s'),
        ('RTv4-S-hgnet.pth', 'deim_dfine_s'),
        ('rtdetrv4_s.pth', 'deim_dfine_s'),
        ('deim_s_obj2coco.pth', 'dfine_s'),
    ],
)
def test_the_file_name_tells_deim_from_its_baseline(file_name, expected):
    found = identify(converted('deim_dfine_s'), file_name=file_name)
    assert found.name == expected
    # Only names of published files are certain.
    assert (found.doubt is None) == (file_name in ('dfine_s_obj2coco.pth', 'rtdetrv4_s.pth'))


@pytest.mark.parametrize(
    ('file_name', 'name', 'activation', 'certain'),
    [
        ('deim_dfine_x_obj2coco.pth', 'deim_dfine_x_obj2coco', 'ReLU', True),
        ('deim_hgnetv2_x_obj2coco_24e.pth', 'deim_dfine_x_obj2coco', 'ReLU', True),
        ('deim_best.pth', 'deim_dfine_x_obj2coco', 'ReLU', False),
        ('dfine_x_mine.pth', 'dfine_x', 'ReLU', True),
        ('best.pth', 'dfine_x', 'ReLU', True),
    ],
)
def test_frozen_norms_tell_dfine_and_objects365_from_deim(file_name, name, activation, certain):
    """DEIM-X fine-tuned from Objects365 has the parameters of DEIM-X, but D-FINE's ReLU."""
    found = identify(converted('dfine_x'), file_name=file_name)
    assert (found.name, found.activation) == (name, activation)
    assert (found.doubt is None) == certain
    if not certain:
        assert 'taken for deim_dfine_x_obj2coco with ReLU, but deim_dfine_x have' in found.doubt


def test_norms_in_training_tell_deim_whatever_the_name():
    path = published_models()['deim_dfine_x'].config
    found = identify(without_memory(detector(path, 80)), file_name='x_obj2coco_dfine.pth')
    assert found.name == 'deim_dfine_x'
    assert 'with SiLU, but dfine_x' in found.doubt


def test_only_models_of_the_recipe_are_considered():
    state_dict = converted('deim_dfine_s')
    assert identify(state_dict, deim=True, file_name='best.pth').name == 'deim_dfine_s'
    assert identify(state_dict, deim=False, file_name='deim_best.pth').name == 'dfine_s'


def test_weights_of_objects365_are_of_their_own_config():
    path = published_models()['dfine_s'].config
    state_dict = without_memory(detector(path, 366))
    found = identify(state_dict, file_name='dfine_s_obj365.pth')
    assert found.name == 'dfine_s_obj365'
    assert found.config.model.bbox_head.num_classes == 366


def test_a_config_tells_as_well():
    state_dict = converted('deim_dfine_s')
    assert identify(state_dict, config='dfine_s').name == 'dfine_s'
    path = config_path('configs/deim_dfine_s.py')
    assert identify(state_dict, config=str(path), file_name='dfine_s.pth').name == 'deim_dfine_s'
    with pytest.raises(ValueError, match=r'of no known model; compared with deim_dfine_n: '):
        identify(state_dict, config='deim_dfine_n')
    assert config_path('dfine_s_obj365').parent.name == 'objects365'
    with pytest.raises(ValueError, match=r'there is no config dfine_q: .*deim_dfine_l'):
        identify(state_dict, config='dfine_q')


def test_counters_of_frozen_norms_dont_count():
    """transformers freezes the backbone's norms of every size, D-FINE that of L and X."""
    state_dict = converted('deim_dfine_s')
    frozen = {
        name: value
        for name, value in state_dict.items()
        if not (name.startswith('backbone') and name.endswith('num_batches_tracked'))
    }
    assert len(frozen) < len(state_dict)
    found = identify(frozen, deim=False)
    assert found.name == 'dfine_s'
    completed = complete(frozen, found.shapes)
    assert completed.keys() == state_dict.keys()
    added = completed.keys() - frozen.keys()
    assert {completed[name].item() for name in added} == {0}
    assert {completed[name].dtype for name in added} == {torch.long}


def test_a_mixture_of_two_models_is_refused():
    head = {k: v for k, v in converted('dfine_n').items() if k.startswith('bbox_head')}
    rest = {k: v for k, v in converted('deim_dfine_s').items() if not k.startswith('bbox_head')}
    words = r'mixture.*bbox_head is of deim_dfine_n or dfine_n, neck is of deim_dfine_s or dfine_s'
    with pytest.raises(ValueError, match=words):
        identify({**rest, **head})


def test_an_unknown_architecture_is_refused_by_its_nearest():
    state_dict = converted('deim_rtdetrv2_r18')
    state_dict['bbox_head.decoder.mask_head.weight'] = torch.zeros(3)
    del state_dict['neck.input_proj.0.conv.weight']
    state_dict['neck.input_proj.1.conv.weight'] = torch.zeros(9, 9, 1, 1)
    with pytest.raises(ValueError, match='of no known model') as error:
        identify(state_dict)
    assert 'compared with deim_rtdetrv2_r18: 1 missing (neck.input_proj.0' in str(error.value)
    assert '1 unexpected (bbox_head.decoder.mask_head.weight)' in str(error.value)
    assert '1 of another shape (neck.input_proj.1.conv.weight)' in str(error.value)
    del state_dict['bbox_head.query_selection.score.bias']
    with pytest.raises(ValueError, match=r'query_selection\.score\.bias is missing'):
        identify(state_dict)


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_are_recognised(name):
    assert identify(without_memory(backbone(name))).name == name


def test_comparison_lists_each_difference_once():
    shapes = dict(a=torch.Size([2]), b=torch.Size([3]), n_num_batches_tracked=torch.Size([]))
    found = compare(dict(b=torch.zeros(4), c=torch.zeros(1)), shapes)
    assert found == (['a'], ['c'], ['b'])
    assert str(found) == '1 missing (a); 1 unexpected (c); 1 of another shape (b)'
