from deim_mmdet.datasets import (
    DenseO2O,
    DenseO2OIoUCrop,
    DenseO2OMosaic,
    DenseO2OZoomOut,
    DropTinyBoxes,
)

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks

BOXES = [[-5, -5, 10, 10], [19.5, 3, 25, 8], [2, 2, 3, 3], [2, 2, 2.9, 9], [5, 25, 9, 40]]


@pytest.mark.parametrize('as_array', [False, True])
def test_drop_tiny_boxes(make_sample, as_array):
    sample = make_sample([], 20, 20)
    boxes = np.array(BOXES, dtype=np.float32)
    sample['gt_bboxes'] = boxes if as_array else HorizontalBoxes(torch.from_numpy(boxes))
    sample['gt_bboxes_labels'] = np.arange(5)
    sample['gt_ignore_flags'] = np.array([False, False, True, False, False])
    results = DropTinyBoxes(min_size=1).transform(sample)
    assert type(results['gt_bboxes']) is (np.ndarray if as_array else HorizontalBoxes)
    kept = results['gt_bboxes'] if as_array else results['gt_bboxes'].tensor.numpy()
    assert kept.dtype == np.float32
    assert kept.tolist() == [[0, 0, 10, 10], [2, 2, 3, 3]]
    assert results['gt_bboxes_labels'].tolist() == [0, 2]
    assert results['gt_ignore_flags'].tolist() == [False, True]


def test_image_may_be_left_without_objects(make_sample):
    results = DropTinyBoxes(min_size=30).transform(make_sample([[1, 1, 9, 9]], 20, 20))
    assert results['gt_bboxes'].tensor.shape == (0, 4)
    assert results['gt_bboxes_labels'].shape == (0,)


@pytest.mark.parametrize(
    'transform',
    [
        DenseO2OZoomOut(prob=0),
        DenseO2OIoUCrop(prob=0),
        DenseO2OMosaic(),
        DenseO2O(load=[]),
    ],
)
def test_a_semantic_map_that_would_not_follow_the_pixels_is_refused(make_sample, transform):
    sample = make_sample([[1, 1, 9, 9]], 20, 20)
    sample['gt_seg_map'] = np.zeros((20, 20), np.uint8)
    with pytest.raises(NotImplementedError, match=r'does not transform semantic maps.*with_seg'):
        transform.transform(sample)


def test_numbers_of_tracks_stay_with_their_boxes(make_sample):
    sample = make_sample([[1, 1, 9, 9], [2, 2, 2, 9], [4, 4, 8, 8]], 20, 20)
    sample['gt_instances_ids'] = np.array([7, 8, 9])
    results = DropTinyBoxes(min_size=1).transform(sample)
    assert results['gt_instances_ids'].tolist() == [7, 9]


@pytest.mark.parametrize('transform', [DropTinyBoxes(), DenseO2OZoomOut(), DenseO2OIoUCrop()])
def test_what_cannot_be_transformed_is_named(make_sample, transform):
    name = type(transform).__name__
    sample = make_sample([[1, 1, 9, 9]], 20, 20)
    masks = BitmapMasks(np.zeros((1, 20, 20), np.uint8), 20, 20)
    with pytest.raises(NotImplementedError, match=f'{name} does not transform masks'):
        transform.transform({**sample, 'gt_masks': masks})
    del sample['gt_bboxes']
    with pytest.raises(KeyError, match=f'{name} needs gt_bboxes: put LoadAnnotations'):
        transform.transform(dict(sample))
    with pytest.raises(TypeError, match=r'needs horizontal boxes.*list'):
        transform.transform({**sample, 'gt_bboxes': [[0, 0, 1, 1]]})


def test_bad_argument():
    with pytest.raises(ValueError, match=r'min_size must be a number in \[0, inf\], got -1'):
        DropTinyBoxes(min_size=-1)
    assert repr(DropTinyBoxes()) == 'DropTinyBoxes(min_size=1.0)'
