import json
import math

from deim_mmdet.datasets.annotation_file import read_annotation_file

import numpy as np
import pytest


def write(folder, part=None, field=None, value=None):
    content = dict(
        images=[dict(id=5, file_name='5.png', height=48, width=64)],
        annotations=[
            dict(id=2, image_id=5, category_id=3, bbox=[1, 2, 8, 9], area=72, iscrowd=0),
        ],
        categories=[dict(id=3, name='cat')],
    )
    if part is not None:
        content[part][0][field] = value
    path = folder / 'ann.json'
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize('evaluation', [False, True])
@pytest.mark.parametrize(
    'value', [1638316800000000000, -1638316800000000000, 2**53 + 1, 1e19, 10**400]
)
@pytest.mark.parametrize(
    ('part', 'field'),
    [
        ('images', 'id'),
        ('categories', 'id'),
        ('annotations', 'id'),
        ('annotations', 'image_id'),
        ('annotations', 'category_id'),
    ],
)
def test_ids_that_floating_point_numbers_cannot_tell_apart(
    tmp_path, part, field, value, evaluation
):
    path = write(tmp_path, part, field, value)
    with pytest.raises(ValueError, match=rf'entry 0 of "{part}" with {field} -?\d') as raised:
        read_annotation_file(path, evaluation)
    message = str(raised.value)
    assert '2^53 (9007199254740992)' in message
    assert 'Number the entries anew' in message
    assert 'must be' not in message


def test_the_limit_is_that_of_floating_point_numbers(tmp_path):
    """Up to 2^53 each integer has a number of its own, and the next one has not."""
    for largest in (2**53, -(2**53)):
        path = write(tmp_path, 'annotations', 'id', largest)
        [annotation] = read_annotation_file(path, evaluation=True)['annotations']
        assert int(np.float64(annotation['id'])) == largest
    assert np.float64(2**53 + 1) == np.float64(2**53)
    with pytest.raises(ValueError, match=r'above 2\^53'):
        read_annotation_file(write(tmp_path, 'annotations', 'id', 2**53 + 1), evaluation=True)


def test_nothing_but_ids_and_integers_is_said_to_be_above_the_limit(tmp_path):
    for part, field, value, form in (
        ('annotations', 'id', 2**60, r'above 2\^53'),
        *(
            ('annotations', 'id', value, 'It must be an integer')
            for value in (1.5, math.nan, math.inf, True, [2**60])
        ),
        ('images', 'width', 10**400, 'It must be a number of pixels above 0'),
    ):
        path = write(tmp_path, part, field, value)
        with pytest.raises(ValueError, match=rf'"{part}" with {field} .*{form}'):
            read_annotation_file(path, evaluation=True)
