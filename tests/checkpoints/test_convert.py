import json

from deim_mmdet.checkpoints.convert import (
    classes_of_annotations,
    count_classes,
    find_weights,
    make_checkpoint,
    to_our_names,
)

import pytest
import torch
from reference_checkpoints import reference_state_dict


def weights(value):
    return {'backbone.stem.w': torch.tensor(value), 'decoder.b': torch.tensor(value)}


@pytest.mark.parametrize(
    ('checkpoint', 'part'),
    [
        (dict(model=weights(1), optimizer={}, last_epoch=3), 'model'),
        (dict(model=weights(0), ema=dict(module=weights(1), updates=7)), 'ema.module'),
        (dict(model=weights(1), ema=None), 'model'),
        (dict(state_dict=weights(1), meta={}), 'state_dict'),
        (weights(1), 'the file itself'),
        (dict(model={f'module.{k}': v for k, v in weights(1).items()}), 'model'),
    ],
    ids=['model', 'average', 'no average', 'mmengine', 'bare', 'distributed'],
)
def test_parameters_are_found_in_every_container(checkpoint, part):
    found = find_weights(checkpoint)
    assert found.part == part
    assert found.naming == 'reference'
    assert {name: int(value) for name, value in found.state_dict.items()} == {
        'backbone.stem.w': 1,
        'decoder.b': 1,
    }


def test_a_file_without_parameters_is_refused():
    with pytest.raises(ValueError, match='no parameters, only epoch, model'):
        find_weights(dict(model=dict(lr=0.1), epoch=3))


@pytest.mark.parametrize(
    ('name', 'naming'),
    [
        ('bbox_head.decoder.up', 'deim_mmdet'),
        ('model.backbone.model.embedder.stem1.convolution.weight', 'transformers'),
        ('encoder.input_proj.0.conv.weight', None),
        ('backbone.conv1.conv1_1.conv.weight', 'reference'),
        ('conv1.conv1_1.conv.weight', 'backbone'),
        ('stem.stem1.conv.weight', 'backbone'),
        ('transformer.encoder.weight', None),
    ],
)
def test_naming_is_told_by_prefixes(name, naming):
    assert find_weights({name: torch.zeros(1)}).naming == naming


def test_unknown_naming_is_refused_by_names():
    with pytest.raises(ValueError, match=r'no model known here: transformer\.w'):
        to_our_names(find_weights({'transformer.w': torch.zeros(1)}))


def test_classes_are_counted_from_the_scores():
    found = find_weights(reference_state_dict('dfine_n', num_classes=7))
    assert count_classes(to_our_names(found)) == 7
    assert count_classes({'stem.0.weight': torch.zeros(1)}) is None


def test_what_only_the_training_of_rtdetrv4_uses_is_left_out():
    state_dict = reference_state_dict('dfine_n', num_classes=7)
    projector = {
        f'encoder.feature_projector.0.{leaf}': torch.ones(2) for leaf in ('weight', 'bias')
    }
    found = find_weights(dict(ema=dict(module={**state_dict, **projector})))
    expected = to_our_names(find_weights(state_dict))
    assert to_our_names(found).keys() == expected.keys()


def test_checkpoint_states_its_classes_as_mmengine_does():
    made = make_checkpoint({'w': torch.ones(1)}, ['a', 'b'], experiment_name='x')
    assert made['meta'] == dict(experiment_name='x', dataset_meta=dict(classes=('a', 'b')))
    assert make_checkpoint({}, None)['meta'] == {}


@pytest.mark.parametrize(
    ('ids', 'num_classes', 'expected'),
    [
        ([0, 1, 2], 3, ['c0', 'c1', 'c2']),
        ([7, 3, 90], 3, ['c3', 'c7', 'c90']),
        ([1, 2], 3, ['unused_0', 'c1', 'c2']),
    ],
    ids=['from 0', 'any ids', 'from 1'],
)
def test_class_names_of_annotations(tmp_path, ids, num_classes, expected):
    path = tmp_path / 'train.json'
    path.write_text(json.dumps(dict(categories=[dict(id=i, name=f'c{i}') for i in ids])))
    assert classes_of_annotations(path, num_classes) == expected
    with pytest.raises(ValueError, match=rf'train\.json has {len(ids)} categories.* 2?1 classes'):
        classes_of_annotations(path, 1)
