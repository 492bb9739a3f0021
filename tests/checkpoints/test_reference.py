"""Names of the reference and of this package, both ways, for every model with shared shapes."""

import itertools
import re

from deim_mmdet.checkpoints import convert_name, convert_reference_state_dict
from deim_mmdet.checkpoints.architectures import detector
from deim_mmdet.checkpoints.published import published_models
from deim_mmdet.checkpoints.reference import decoder_kind, name_table
from deim_mmdet.checkpoints.reverse import to_reference_state_dict

import golden
import numpy as np
import pytest
import torch
from reference_checkpoints import MODELS, anchors, reference_state_dict

DERIVED = {'anchors', 'valid_mask', 'num_points_scale', 'up', 'reg_scale'}


# Module scope: pytest runs all tests of one model before it takes the next.
@pytest.fixture(scope='module', params=MODELS)
def name(request):
    return request.param


def meta_model(name):
    with torch.device('meta'):
        return golden.build_model(name)


def test_every_shared_model_fits_strictly(name):
    """No name is missing or unexpected here, and only derived buffers are left out."""
    state_dict = reference_state_dict(name)
    converted = convert_reference_state_dict(state_dict)
    expected = {key: value.shape for key, value in meta_model(name).state_dict().items()}
    assert {key: value.shape for key, value in converted.items()} == expected
    kind = decoder_kind(state_dict)
    dropped = {key for key in state_dict if convert_name(key, kind) is None}
    assert {key.rsplit('.', 1)[-1] for key in dropped} <= DERIVED
    assert len(dropped) == len(state_dict) - len(converted)


def test_round_trip_is_bit_for_bit(name):
    state_dict = reference_state_dict(name)
    cfg = golden.Config.fromfile(golden.CONFIGS / f'{name}.py').model
    converted = convert_reference_state_dict(state_dict)
    back = to_reference_state_dict(
        converted, cfg.neck.feat_strides, cfg.bbox_head.decoder.num_points
    )
    assert back.keys() == state_dict.keys()
    for key, value in state_dict.items():
        assert back[key].dtype == value.dtype, key
        assert torch.equal(back[key], value), key


def test_files_without_second_names_of_a_parameter_load():
    """safetensors keeps one name, the first in alphabetical order, of each parameter."""
    state_dict = reference_state_dict('deimv2_pico')
    shared = {k: v for k, v in state_dict.items() if k.startswith('decoder.dec_bbox_head.0.')}
    for i, (name, value) in itertools.product((1, 2), shared.items()):
        state_dict[name.replace('head.0.', f'head.{i}.')] = value
    expected = convert_reference_state_dict(state_dict)
    kept = {
        key: value
        for key, value in state_dict.items()
        if not re.match(r'decoder\.(up|reg_scale|dec_bbox_head\.[12]\.)', key)
    }
    assert len(kept) == len(state_dict) - 2 - 2 * len(shared)
    converted = convert_reference_state_dict(kept)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


def test_anchors_follow_the_size_of_the_input():
    converted = convert_reference_state_dict(reference_state_dict('deimv2_pico'))
    back = to_reference_state_dict(converted, (16, 32), (4, 2), image_size=320)
    assert back['decoder.anchors'].shape == (1, 20 * 20 + 10 * 10, 4)
    back = to_reference_state_dict(converted, (16, 32), (4, 2), image_size=(64, 96))
    centres = back['decoder.anchors'][..., :2].sigmoid()[0, -6:]
    expected = [[(x + 0.5) / 3, (y + 0.5) / 2] for y in range(2) for x in range(3)]
    torch.testing.assert_close(centres, torch.tensor(expected))
    assert back['decoder.anchors'].shape == (1, 4 * 6 + 2 * 3, 4)


def test_stored_anchors_are_logits_of_cell_boxes():
    boxes, valid = (array[0].numpy() for array in anchors((16, 32)))
    assert boxes.shape == (40 * 40 + 20 * 20, 4)
    row, column = 20, 25
    expected = np.array([25.5 / 40, 20.5 / 40, 0.05, 0.05])
    logits = np.log(expected / (1 - expected))
    np.testing.assert_allclose(boxes[40 * row + column], logits, rtol=1e-5)
    assert valid.all()
    # A cell of 8 pixels at the border has its centre at 4 / 640 < 0.01.
    boxes, valid = (array[0].numpy() for array in anchors((8,)))
    assert (boxes[:80] == np.inf).all()
    assert not valid[:80].any()
    assert valid.sum() == 78 * 78


def test_names_of_the_other_side_are_refused_by_name():
    state_dict = dict(reference_state_dict('dfine_n'), **{'decoder.extra.weight': torch.ones(1)})
    with pytest.raises(ValueError, match=r'1 of 675 names .*decoder\.extra\.weight'):
        convert_reference_state_dict(state_dict)
    converted = convert_reference_state_dict(reference_state_dict('dfine_n'))
    with pytest.raises(ValueError, match=r'1 of \d+ names are not of this package.*neck\.extra'):
        to_reference_state_dict({**converted, 'neck.extra': torch.ones(1)}, (16, 32), (6, 6))


@pytest.mark.parametrize(
    'unknown', ['decoder.unknown', 'encoder.fpn_blocks.0.mystery', 'head.weight']
)
def test_unknown_name(unknown):
    with pytest.raises(KeyError, match=unknown):
        convert_name(unknown)


def test_the_kind_of_decoder_decides_what_a_box_head_is():
    name = 'decoder.dec_bbox_head.2.layers.0.weight'
    distributions = 'bbox_head.decoder.distribution_heads.2.layers.0.weight'
    boxes = 'bbox_head.decoder.box_heads.2.layers.0.weight'
    assert (convert_name(name), convert_name(name, 'rtdetrv2')) == (distributions, boxes)
    assert name_table('dfine', reverse=True)(distributions) == name
    assert name_table('rtdetrv2', reverse=True)(boxes) == name


@pytest.mark.parametrize(
    'name', [name for name in published_models() if name.startswith(('deimv2', 'ecdet'))]
)
def test_names_of_all_successors_go_there_and_back(name):
    """Of the sizes, too, whose names no figures state."""
    ours = detector(published_models()[name].config, 80).shapes
    kind = decoder_kind(ours)
    theirs = [*map(name_table(kind, reverse=True), ours)]
    assert len(set(theirs)) == len(theirs)
    assert [convert_name(entry, kind) for entry in theirs] == list(ours)
