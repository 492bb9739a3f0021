"""Which detection found which object, by COCO's rules."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mmdet.datasets.api_wrappers import COCO, COCOeval

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
        area: (N,) in square pixels, as annotated.
        crowd: (N,) whether it is a region of many objects; these need not be found.
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
        entry: (N,) their positions among all detections.
        score: (N,).
        object: (N,) positions of the objects that they found; -1 where they found none.
        ignored: (N,) whether they lie on a crowd, so that they are neither right nor wrong.
    """

    entry: np.ndarray
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
    with quiet():
        evaluation = coco_evaluation(COCOeval, annotations, found)
        settings = evaluation.params
        settings.catIds, settings.imgIds = list(category_ids), list(image_ids)
        settings.iouThrs, settings.maxDets = np.array([IOU]), [most]
        settings.areaRng, settings.areaRngLbl = [[0, 1e10]], ['all']
        evaluation.evaluate()
    pairs = [pair for pair in evaluation.evalImgs if pair is not None]
    labels = {id: label for label, id in enumerate(category_ids)}
    images = {id: image for image, id in enumerate(image_ids)}
    entries = [
        entry
        for image in image_ids
        for entry in annotations.imgToAnns[image]
        if entry['category_id'] in labels
    ]
    objects = Objects(
        *_placed(entries, images, labels),
        id=np.array([entry['id'] for entry in entries]),
        area=np.array([entry['area'] for entry in entries], float),
        crowd=np.array([entry.get('iscrowd', 0) for entry in entries], bool),
        found_at=np.full(len(entries), -np.inf),
    )
    position = {entry['id']: index for index, entry in enumerate(entries)}
    ids = [id for pair in pairs for id in pair['dtIds']]
    counted = [found[id - 1] for id in ids]
    matched = [id for pair in pairs for id in pair['dtMatches'][0]]
    ignored = [flag for pair in pairs for flag in pair['dtIgnore'][0]]
    detections = Detections(
        *_placed(counted, images, labels),
        entry=np.array([entry['id'] - 1 for entry in counted], int),
        score=np.array([entry['score'] for entry in counted], float),
        # An id of 0 stands for "none" in COCO's evaluation.
        object=np.array(
            [
                position[id] if id and not flag else -1
                for id, flag in zip(matched, ignored, strict=True)
            ],
            int,
        ),
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
    if not len(detections) or not len(objects):
        return []
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=int(image)) for image in np.union1d(detections.image, objects.image)],
        categories=[dict(id=1)],
        annotations=[
            dict(
                id=index + 1,
                image_id=int(image),
                category_id=1,
                bbox=box.tolist(),
                area=float(box[2] * box[3]),
                iscrowd=0,
            )
            for index, (image, box) in enumerate(zip(objects.image, objects.box, strict=True))
        ],
    )
    found = [
        dict(image_id=int(image), category_id=1, bbox=box.tolist(), score=float(score))
        for image, box, score in zip(detections.image, detections.box, scores, strict=True)
    ]
    with quiet():
        truth.createIndex()
    matched, numbered = match(truth, found, [1], sorted(truth.imgs), len(found))
    right = np.flatnonzero(matched.object >= 0)
    right = right[np.argsort(-matched.score[right], kind='stable')]
    return [
        (int(matched.entry[index]), int(numbered.id[matched.object[index]]) - 1) for index in right
    ]


def _placed(entries: Sequence[dict], images: dict, labels: dict) -> tuple[np.ndarray, ...]:
    """Positions of images, positions of classes, and boxes, of entries in COCO's form."""
    return (
        np.array([images[entry['image_id']] for entry in entries], int),
        np.array([labels[entry['category_id']] for entry in entries], int),
        np.array([entry['bbox'] for entry in entries], float).reshape(-1, 4),
    )
