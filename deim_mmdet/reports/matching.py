"""Which detection found which object, by COCO's rules."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mmdet.datasets.api_wrappers import COCO, COCOeval
from pycocotools.mask import iou

from ..evaluation.coco_tables import coco_evaluation

#: A detection finds an object of its class where their boxes have at least this IoU.
IOU = 0.5


@dataclass
class Boxes:
    """Boxes of all images.

    Attributes:
        image: (N,) positions of their images.
        label: (N,) positions of their classes.
        box: (N, 4) x, y, width and height in pixels of the annotated image.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


@dataclass
class Objects(Boxes):
    """Annotated objects.

    Attributes:
        id: (N,) the annotations' ids.
        area: (N,) areas in square pixels, as annotated.
        crowd: (N,) whether the annotation is a region of many objects, which need not be found.
        found_at: (N,) score of the detection that found the object; -inf where none did.
    """

    id: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    found_at: np.ndarray


@dataclass
class Detections(Boxes):
    """Detections that count: the best of each class and image, as many as COCO's AP takes.

    Attributes:
        score: (N,) scores in [0, 1].
        object: (N,) positions of the objects that they found; -1 where they found none.
        ignored: (N,) whether they lie on a crowd, so that they are neither right nor wrong.
    """

    score: np.ndarray
    object: np.ndarray
    ignored: np.ndarray


@contextlib.contextmanager
def quiet():
    """Context in which pycocotools doesn't print."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def match(
    annotations: COCO,
    found: list[dict],
    category_ids: Sequence[int],
    image_ids: Sequence,
    most: int,
) -> tuple[Detections, Objects]:
    """Match detections with objects of their class at an IoU of 0.5, by pycocotools itself.

    Args:
        annotations: The objects.
        found: Detections as entries of COCO's results.
        category_ids: The classes; their order gives the positions of classes.
        image_ids: The images; their order gives the positions of images.
        most: The number of detections of a class in an image that count.
    """
    labels = {id: label for label, id in enumerate(category_ids)}
    images = {id: image for image, id in enumerate(image_ids)}
    entries = [
        entry
        for image in image_ids
        for entry in annotations.imgToAnns[image]
        if entry['category_id'] in labels
    ]
    # COCO's evaluation keeps the ids of matches in floating point, where 0 stands for "none".
    numbered = COCO()
    numbered.dataset = {
        **annotations.dataset,
        'annotations': [dict(entry, id=number) for number, entry in enumerate(entries, 1)],
    }
    with quiet():
        numbered.createIndex()
        evaluation = coco_evaluation(COCOeval, numbered, found)
        settings = evaluation.params
        settings.catIds, settings.imgIds = list(category_ids), list(image_ids)
        settings.iouThrs, settings.maxDets = np.array([IOU]), [most]
        settings.areaRng, settings.areaRngLbl = [[0, 1e10]], ['all']
        evaluation.evaluate()
    pairs = [pair for pair in evaluation.evalImgs if pair is not None]
    objects = Objects(
        *_placed(entries, images, labels),
        id=np.array([entry['id'] for entry in entries]),
        area=np.array([entry['area'] for entry in entries], float),
        crowd=np.array([entry.get('iscrowd', 0) for entry in entries], bool),
        found_at=np.full(len(entries), -np.inf),
    )
    ids = [id for pair in pairs for id in pair['dtIds']]
    counted = [found[id - 1] for id in ids]
    matched = [id for pair in pairs for id in pair['dtMatches'][0]]
    ignored = [flag for pair in pairs for flag in pair['dtIgnore'][0]]
    detections = Detections(
        *_placed(counted, images, labels),
        score=np.array([entry['score'] for entry in counted], float),
        object=np.where(ignored, -1, np.array(matched, int) - 1),
        ignored=np.array(ignored, bool),
    )
    right = detections.object >= 0
    objects.found_at[detections.object[right]] = detections.score[right]
    return detections, objects


def match_across_classes(
    detections: Boxes, scores: np.ndarray, objects: Boxes
) -> list[tuple[int, int]]:
    """Match boxes of an image whatever their classes, by the same rules.

    Args:
        detections: Detections.
        scores: (N,) their scores.
        objects: Objects, none of them a crowd.

    Returns:
        Pairs of a detection's and an object's position, the best score first.
    """
    members, taken, pairs = by_image(objects), np.zeros(len(objects), bool), []
    for index in np.argsort(-scores, kind='stable'):
        free = members.get(detections.image[index], np.zeros(0, int))
        # Of equal IoUs COCO takes the last.
        free = free[~taken[free]][::-1]
        if not len(free):
            continue
        ious = iou(detections.box[[index]], objects.box[free], [0] * len(free))[0]
        if ious.max() >= IOU:
            best = free[ious.argmax()]
            taken[best] = True
            pairs.append((int(index), int(best)))
    return pairs


def by_image(boxes: Boxes) -> dict[int, np.ndarray]:
    """Positions of the boxes of each image that has any."""
    if not len(boxes):
        return {}
    order = np.argsort(boxes.image, kind='stable')
    images, starts = np.unique(boxes.image[order], return_index=True)
    return dict(zip(images.tolist(), np.split(order, starts[1:]), strict=True))


def _placed(entries: Sequence[dict], images: dict, labels: dict) -> tuple[np.ndarray, ...]:
    """Positions of images, positions of classes, and boxes, of entries in COCO's form."""
    return (
        np.array([images[entry['image_id']] for entry in entries], int),
        np.array([labels[entry['category_id']] for entry in entries], int),
        np.array([entry['bbox'] for entry in entries], float).reshape(-1, 4),
    )
