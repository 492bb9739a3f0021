"""Pictures with one red box each, in the demo's classes and COCO's format."""

import json

import cv2
import numpy as np

CLASSES = ('digit_0', 'digit_2', 'digit_3', 'digit_4')
# Of each picture: a box (x1, y1, x2, y2) in its pixels, and the label.
OBJECTS = [((10, 5, 40, 25), 2), ((0, 0, 30, 20), 0), ((20, 10, 80, 30), 3)]


def write_red_boxes(folder, split):
    """Pictures of 100x50 pixels in a folder ``split``, annotations in ``split``.json beside it.

    The ids of categories are not the labels.
    """
    (folder / split).mkdir(parents=True)
    categories = [dict(id=7 * i + 3, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=[], annotations=[], categories=categories)
    for i, ((left, top, right, bottom), label) in enumerate(OBJECTS, 1):
        picture = np.zeros((50, 100, 3), np.uint8)
        picture[top:bottom, left:right, 2] = 255
        cv2.imwrite(str(folder / split / f'{i}.png'), picture)
        content['images'].append(dict(id=i, file_name=f'{i}.png', width=100, height=50))
        width, height = right - left, bottom - top
        content['annotations'].append(
            dict(
                id=i,
                image_id=i,
                category_id=categories[label]['id'],
                bbox=[left, top, width, height],
                area=width * height,
                iscrowd=0,
            )
        )
    (folder / f'{split}.json').write_text(json.dumps(content))
