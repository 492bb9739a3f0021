"""Each object's box is the hull of the object's pixels after every geometric transform."""

from deim_mmdet.datasets.transforms.crops import centres_inside

import numpy as np
import pytest
from mmengine.dataset import Compose

RESIZE = [
    {'type': 'RandomFlip', 'prob': 0.5},
    {'type': 'Resize', 'scale': (96, 128), 'keep_ratio': False},
    {'type': 'DropTinyBoxes'},
]
ZOOM_OUT = [{'type': 'DenseO2OZoomOut', 'prob': 0.7}]
CROP = [{'type': 'DenseO2OIoUCrop', 'prob': 1}]


@pytest.mark.parametrize(
    'pipeline',
    [ZOOM_OUT, CROP, ZOOM_OUT + CROP, RESIZE, ZOOM_OUT + CROP + RESIZE],
    ids=['zoom-out', 'crop', 'zoom-out-crop', 'flip-resize', 'all'],
)
def test_boxes_are_the_hulls_of_their_pixels(make_sample, pipeline):
    transform = Compose(pipeline)
    rng = np.random.default_rng(0)
    np.random.seed(0)
    dropped = 0
    for _ in range(150):
        height, width = rng.integers(80, 200, 2)
        corner = rng.random((3, 2)) * [0.6 * width, 0.6 * height]
        size = rng.uniform(0.1, 0.4, (3, 2)) * [width, height]
        boxes = np.rint(np.concatenate([corner, corner + size], axis=1))
        results = transform(make_sample(boxes, height, width))
        img = results['img']
        assert results['img_shape'] == img.shape[:2]
        labels = results['gt_bboxes_labels']
        dropped += 3 - len(labels)
        for label, box in zip(labels, results['gt_bboxes'].tensor.tolist(), strict=True):
            rows, columns = np.nonzero(img[..., label] > 127)
            hull = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box == pytest.approx(hull, abs=1.01)
    assert dropped > 0 or CROP[0] not in pipeline


def test_centre_on_the_border_is_outside():
    boxes = np.array([[0, 0, 20, 20], [5, 5, 9, 9]])
    windows = np.array([[10, 0, 30, 30], [0, 0, 30, 30]])
    assert centres_inside(boxes, windows).tolist() == [[False, False], [True, True]]
