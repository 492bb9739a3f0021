"""Objects and detections of which all errors are known, and the report's input from them."""

from deim_mmdet.reports.content import Evaluated

import cv2
import numpy as np
from mmdet.datasets.api_wrappers import COCO

SIDE = 200
IDS = dict(cat=3, dog=7)
# Image, class, box as x, y, width, height, and whether it is a crowd.
OBJECTS = [
    (1, 'cat', (10, 10, 40, 40), 0),
    (1, 'dog', (100, 100, 50, 50), 0),
    (2, 'cat', (10, 10, 40, 40), 0),
    # The one before, annotated twice: an IoU of 39 / 41.
    (2, 'cat', (11, 10, 40, 40), 0),
    (2, 'dog', (100, 100, 60, 60), 0),
    (3, 'cat', (10, 10, 20, 20), 0),
    (3, 'cat', (100, 100, 80, 80), 1),
]
# Image, class, box and score.
FOUND = [
    (1, 'cat', (150, 10, 30, 30), 0.95),  # nothing is annotated there
    (1, 'cat', (10, 10, 40, 40), 0.9),
    (1, 'cat', (12, 10, 40, 40), 0.3),  # the same cat again
    (1, 'dog', (100, 100, 50, 50), 0.8),
    (2, 'cat', (10, 10, 40, 40), 0.85),
    (2, 'cat', (100, 100, 60, 60), 0.87),  # a dog
    (3, 'cat', (120, 120, 30, 30), 0.75),  # in the crowd
    (3, 'cat', (20, 10, 20, 20), 0.6),  # an IoU of 1 / 3
    (3, 'dog', (160, 10, 20, 20), 0.05),  # nothing is annotated there
]


def coco(objects=OBJECTS, images=3, ids=IDS):
    annotations = [
        dict(
            id=100 + index,
            image_id=image,
            category_id=ids[name],
            bbox=list(box),
            area=box[2] * box[3],
            iscrowd=crowd,
        )
        for index, (image, name, box, crowd) in enumerate(objects)
    ]
    truth = COCO()
    truth.dataset = dict(
        images=[
            dict(id=i, file_name=f'{i}.png', width=SIDE, height=SIDE) for i in range(1, images + 1)
        ],
        categories=[dict(id=id, name=name) for name, id in ids.items()],
        annotations=annotations,
    )
    truth.createIndex()
    return truth


def evaluated(folder, objects=OBJECTS, found=FOUND, images=3, ids=IDS):
    """An evaluation of images in ``folder`` that the network saw at half their size."""
    truth, labels, collected = coco(objects, images, ids), [*ids], []
    for image in range(1, images + 1):
        mine = [entry for entry in found if entry[0] == image]
        boxes = np.array([entry[2] for entry in mine], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        collected.append(
            dict(
                img_id=image,
                path=str(folder / f'{image}.png'),
                input=(SIDE // 2, SIDE // 2),
                factors=(0.5, 0.5),
                labels=np.array([labels.index(entry[1]) for entry in mine], int),
                scores=np.array([entry[3] for entry in mine]),
                bboxes=boxes,
            )
        )
    about = dict(config='a <config>.py', weights='some & others.pth')
    return Evaluated(truth, [*ids.values()], [*range(1, images + 1)], collected, about)


def write_images(folder, images=3):
    random = np.random.default_rng(0)
    for image in range(1, images + 1):
        pixels = random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{image}.png'), pixels)
