"""Samples and data sets for the tests of transforms and data sets."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes


@pytest.fixture
def make_sample():
    """Function (boxes, height, width, img=None) -> sample as loaded by mmdet.

    Channel k of the image is 255 inside box k and 0 elsewhere, so that the pixels of up to three
    objects stay apart where they overlap. Label k belongs to box k.
    """

    def make(boxes, height, width, img=None):
        boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        if img is None:
            img = np.zeros((height, width, 3), dtype=np.uint8)
            for channel, (x1, y1, x2, y2) in enumerate(np.rint(boxes).astype(int)):
                img[y1:y2, x1:x2, channel] = 255
        return {
            'img': img,
            'img_shape': (height, width),
            'ori_shape': (height, width),
            'gt_bboxes': HorizontalBoxes(torch.from_numpy(boxes)),
            'gt_bboxes_labels': np.arange(len(boxes)),
            'gt_ignore_flags': np.zeros(len(boxes), dtype=bool),
        }

    return make


@pytest.fixture
def make_coco(tmp_path):
    """Function (sizes, boxes=None) -> root of a COCO-format data set.

    ``sizes``: (height, width) of each image, a PNG of noise. ``boxes``: for each image a list of
    (x, y, w, h); one box in the middle by default. Category ids have a gap: 3 'cat', 7 'dog'.
    """

    def make(sizes, boxes=None):
        rng = np.random.default_rng(0)
        content = {
            'images': [],
            'annotations': [],
            'categories': [{'id': 3, 'name': 'cat'}, {'id': 7, 'name': 'dog'}],
        }
        for number, (height, width) in enumerate(sizes):
            name = f'{number}.png'
            img = rng.integers(1, 256, (height, width, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / name), img)
            content['images'].append(
                {'id': number, 'file_name': name, 'height': height, 'width': width}
            )
            of_image = boxes[number] if boxes else [(width / 4, height / 4, width / 2, height / 2)]
            for box in of_image:
                content['annotations'].append(
                    {
                        'id': len(content['annotations']),
                        'image_id': number,
                        'category_id': (3, 7)[len(content['annotations']) % 2],
                        'bbox': list(box),
                        'area': box[2] * box[3],
                        'iscrowd': 0,
                    }
                )
        (tmp_path / 'ann.json').write_text(json.dumps(content))
        return tmp_path

    return make
