"""Class layers of a checkpoint in a model with other classes."""

from deim_mmdet.checkpoints.class_names import OBJECTS365_ROWS, default_classes, same_classes
from deim_mmdet.checkpoints.classes import (
    CLASS_LAYERS,
    adapt_class_layers,
    drop_unused_row,
    stated_classes,
)

import golden
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

# A network of DEIM and one of its successors, which selects queries without a projection.
NETWORKS = ['deim_dfine_n', 'deimv2_pico']


def build(num_classes, network='deim_dfine_n'):
    cfg = Config.fromfile(golden.CONFIGS / f'{network}.py').model
    cfg.backbone.init_cfg = None
    cfg.bbox_head.num_classes = num_classes
    return MODELS.build(cfg)


def make_checkpoint(num_classes, classes=None, network='deim_dfine_n'):
    """Every class' row holds the class' index, the embedding's padding -1, all else 7."""
    built = build(num_classes, network).state_dict()
    state_dict = {name: torch.full_like(value, 7) for name, value in built.items()}
    for name, value in state_dict.items():
        if CLASS_LAYERS.fullmatch(name):
            for row in range(len(value)):
                value[row] = row if row < num_classes else -1
    meta = {} if classes is None else dict(dataset_meta=dict(classes=classes))
    return dict(state_dict=state_dict, meta=meta)


def make_model(network):
    """A model of the classes a, b, c; all class layers hold 100, the padding too."""
    model = build(3, network)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if CLASS_LAYERS.fullmatch(name):
                value.fill_(100)
    return model


@pytest.fixture(scope='module')
def model():
    return make_model('deim_dfine_n')


def rows(state_dict, name):
    value = state_dict[name]
    value = value if value.dim() == 1 else value[:, 0]
    return value.int().tolist()


@pytest.mark.parametrize('network', NETWORKS)
def test_class_layers_are_all_of_those_whose_shape_depends_on_classes(network):
    two, three = (build(number, network).state_dict() for number in (2, 3))
    depend = {name for name in two if two[name].shape != three[name].shape}
    assert depend == {name for name in two if CLASS_LAYERS.fullmatch(name)}
    assert len(depend) == 2 * (1 + 3) + 1


@pytest.mark.parametrize('network', NETWORKS)
def test_rows_of_equal_names_are_kept(network):
    model = make_model(network)
    checkpoint = make_checkpoint(4, ['x', 'c', 'y', 'a'], network)
    message = adapt_class_layers(model, checkpoint, ['a', 'b', 'c'])
    state_dict = checkpoint['state_dict']
    expected = [3, 100, 1]  # a is the checkpoint's class 3, c its class 1
    assert rows(state_dict, 'bbox_head.query_selection.score.bias') == expected
    for layer in range(3):
        for leaf in ('weight', 'bias'):
            assert rows(state_dict, f'bbox_head.decoder.score_heads.{layer}.{leaf}') == expected
    assert rows(state_dict, 'bbox_head.denoising.embedding.weight') == [*expected, -1]
    for word in ('has 4 classes', 'the model 3', '2 classes with the same name: a, c'):
        assert word in message
    others = [name for name in state_dict if not CLASS_LAYERS.fullmatch(name)]
    assert all((state_dict[name] == 7).all() for name in others)
    model.load_state_dict(state_dict, strict=True)


@pytest.mark.parametrize(
    ('theirs', 'ours'),
    [(None, ['a', 'b', 'c']), (['a', 'b', 'c', 'd'], None), (['a'], ['a', 'b', 'c'])],
    ids=['checkpoint without names', 'data set without names', 'names of another number'],
)
def test_without_both_lists_all_class_layers_start_anew(model, theirs, ours):
    model = build(3)
    expected = {k: v.clone() for k, v in model.state_dict().items() if CLASS_LAYERS.fullmatch(k)}
    checkpoint = make_checkpoint(4, theirs)
    message = adapt_class_layers(model, checkpoint, ours)
    assert 'has 4 classes' in message
    assert 'same name' not in message
    for name, value in expected.items():
        if 'embedding' in name:
            assert rows(checkpoint['state_dict'], name)[-1] == -1
            value, found = value[:-1], checkpoint['state_dict'][name][:-1]
        else:
            found = checkpoint['state_dict'][name]
        assert torch.equal(found, value), name


def test_rows_follow_their_names_where_the_order_differs(model):
    checkpoint = make_checkpoint(3, ('c', 'a', 'b'))
    assert '3 classes with the same name' in adapt_class_layers(model, checkpoint, ('a', 'b', 'c'))
    assert rows(checkpoint['state_dict'], 'bbox_head.decoder.score_heads.1.bias') == [1, 2, 0]


@pytest.mark.parametrize(
    ('meta', 'expected'),
    [
        (dict(dataset_meta=dict(classes=['a', 'b'])), ('a', 'b')),
        # Of MMDetection 2, and of mmengine with its class names.
        (dict(CLASSES=('a', 'b')), ('a', 'b')),
        (dict(dataset_meta=dict(CLASSES=('a', 'b'))), ('a', 'b')),
        (dict(dataset_meta={}), None),
        (None, None),
    ],
)
def test_class_names_that_a_checkpoint_states(meta, expected):
    assert stated_classes(dict(state_dict={}, meta=meta)) == expected


@pytest.mark.parametrize(
    ('theirs', 'ours'), [(('a', 'b', 'c'), ['a', 'b', 'c']), (None, ['a', 'b', 'c'])]
)
def test_equal_classes_are_left_alone(model, theirs, ours):
    checkpoint = make_checkpoint(3, theirs)
    before = dict(checkpoint['state_dict'])
    assert adapt_class_layers(model, checkpoint, ours) is None
    assert all(checkpoint['state_dict'][name] is value for name, value in before.items())


def test_other_models_are_left_alone():
    checkpoint = dict(state_dict={'backbone.weight': torch.ones(1)})
    assert adapt_class_layers(torch.nn.Linear(1, 1), checkpoint, ['a']) is None


@pytest.mark.parametrize(
    ('ours', 'theirs', 'same'),
    [
        (['dog'], ['cat', 'Dog'], ['Dog']),
        (['wine_glass', 'T-shirt'], ['t shirt', 'Wine Glass'], ['Wine Glass', 't shirt']),
        (['tangerine'], ['Orange/Tangerine'], ['Orange/Tangerine']),
        (['Pen/Pencil'], ['pencil'], ['pencil']),
        (['camel', 'monitor'], ['Campel', 'Moniter/TV'], ['Campel', 'Moniter/TV']),
        (['Key '], ['Key', 'Keyboard'], ['Key']),
        # The earlier rule goes first.
        (['dog'], ['Dog', 'dog'], ['dog']),
        (['orange'], ['Orange/Tangerine', 'Orange'], ['Orange']),
        # One name that could be several is none.
        (['dog'], ['Dog', 'DOG'], []),
        (['pen'], ['Pen/Pencil', 'Pen/Marker'], []),
        # Other words, and signs that make a difference.
        (['suitcase', 'bird'], ['Luggage', 'Wild Bird'], []),
        (['a+', '-1', '<1', '/'], ['a-', '1', '>1', '//'], []),
    ],
)
def test_which_names_mean_the_same_class(ours, theirs, same):
    assert [theirs[j] for _, j in same_classes(ours, theirs)] == same


def test_classes_of_coco_in_objects365():
    """All but five have the same name, by the published category ids."""
    coco = default_classes(80)
    pairs = dict(same_classes(coco, OBJECTS365_ROWS))
    missing = [name for index, name in enumerate(coco) if index not in pairs]
    assert missing == ['bird', 'suitcase', 'skis', 'sports ball', 'teddy bear']
    ids = dict(person=1, car=6, dog=93, cat=140, handbag=14, bowl=27, orange=105, tv=38, mouse=116)
    ids |= {'dining table': 99, 'hair drier': 329, 'wine glass': 36, 'toothbrush': 227}
    assert {name: pairs[coco.index(name)] for name in ids} == ids
    assert len(set(pairs.values())) == len(pairs) == 75
    assert default_classes(365) is default_classes(7) is None


def test_rows_of_names_in_another_spelling_are_kept(model):
    checkpoint = make_checkpoint(3, ['B', 'c', 'x/A'])
    message = adapt_class_layers(model, checkpoint, ['a', 'b', 'c'])
    assert rows(checkpoint['state_dict'], 'bbox_head.decoder.score_heads.0.bias') == [2, 0, 1]
    assert '3 classes with the same name: a (x/A), b (B), c' in message


def test_the_score_of_no_class_is_left_out():
    checkpoint = make_checkpoint(366, OBJECTS365_ROWS)
    padding = checkpoint['state_dict']['bbox_head.denoising.embedding.weight'][-1, 0].item()
    resumable = dict(checkpoint, meta=dict(checkpoint['meta'], epoch=3))
    own = make_checkpoint(3, ['unused_0', 'a', 'b'])
    assert drop_unused_row(resumable) is drop_unused_row(own) is None
    assert '366 scores are those of Objects365' in drop_unused_row(checkpoint)
    state_dict = checkpoint['state_dict']
    expected = list(range(1, 366))
    assert rows(state_dict, 'bbox_head.query_selection.score.weight') == expected
    assert rows(state_dict, 'bbox_head.denoising.embedding.weight') == [*expected, padding]
    assert checkpoint['meta']['dataset_meta']['classes'][:2] == ('Person', 'Sneakers')
    build(365).load_state_dict(state_dict, strict=True)
