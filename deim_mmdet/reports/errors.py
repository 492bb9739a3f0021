"""What is wrong with the detections at a score: which errors, and which may be the labels'."""

from dataclasses import dataclass, field

import numpy as np
from pycocotools.mask import iou

from .matching import IOU, Boxes, Detections, Objects, by_image, match_across_classes

# Below this IoU a detection isn't about an object.
APART = 0.1
# From this IoU on two objects of a class are taken for one that is annotated twice.
TWICE = 0.9

#: Kinds of false positives, with what the report calls them.
KINDS = dict(
    background='nothing is annotated there',
    misplaced='right class, but the box fits badly (IoU 0.1 to 0.5)',
    duplicate='a second box on an object that was found',
    confused='an object of another class, not found as its own',
    other='on or beside an object of another class',
)


@dataclass
class LabelError:
    """What may be an error of the annotations.

    Attributes:
        kind: 'missing' (an object that isn't annotated), 'class' (annotated as another class) or
            'twice' (annotated twice).
        certainty: In [0, 1], for sorting. For 'missing' and 'class', the share of the correct
            detections of the class that have no higher score; for 'twice', the boxes' IoU.
        detection: Position of the detection, or None.
        objects: Positions of the objects concerned.
    """

    kind: str
    certainty: float
    detection: int | None
    objects: list[int]


@dataclass
class Errors:
    """Errors of the detections with at least a score.

    Attributes:
        score: The score.
        confusion: (K + 1, K + 1) counts; rows are the annotated classes, columns the detected
            ones, the last of both the background. The diagonal holds what was found.
        kinds: Positions of false positives by kind (``KINDS``), the highest score first.
        confused: (detection, object) of each false positive of kind 'confused', in that order.
        missed: Positions of objects that were not found. Those that no detection of their class
            came near come first, and among them the largest.
        labels: Likely label errors, the likeliest first.
    """

    score: float
    confusion: np.ndarray
    kinds: dict[str, list[int]]
    confused: list[tuple[int, int]]
    missed: list[int]
    labels: list[LabelError] = field(default_factory=list)


def find_errors(detections: Detections, objects: Objects, classes: int, score: float) -> Errors:
    """Sort what is wrong with the detections with at least ``score``.

    Args:
        detections: All detections that count.
        objects: All objects.
        classes: Number of classes.
        score: The score.
    """
    shown = detections.score >= score
    right = np.flatnonzero(shown & (detections.object >= 0))
    wrong = np.flatnonzero(shown & (detections.object < 0) & ~detections.ignored)
    missed = np.flatnonzero(~objects.crowd & (objects.found_at < score))
    pairs = match_across_classes(
        _chosen(detections, wrong), detections.score[wrong], _chosen(objects, missed)
    )
    confused = [(int(wrong[one]), int(missed[other])) for one, other in pairs]
    taken, found = np.array(confused, int).reshape(-1, 2).T
    alone, lost = np.setdiff1d(wrong, taken), np.setdiff1d(missed, found)

    confusion = np.zeros((classes + 1, classes + 1), int)
    for annotated, detected in (
        (objects.label[detections.object[right]], detections.label[right]),
        (objects.label[found], detections.label[taken]),
        (objects.label[lost], classes),
        (classes, detections.label[alone]),
    ):
        np.add.at(confusion, (annotated, detected), 1)

    kinds, objects_of = {kind: [] for kind in KINDS}, by_image(objects)
    kinds['confused'] = taken.tolist()
    for index in alone[np.argsort(-detections.score[alone], kind='stable')]:
        kinds[_kind(index, detections, objects, objects_of)].append(int(index))
    detections_of = by_image(detections)
    near = {index: _best_score(index, detections, objects, detections_of) for index in lost}
    lost = sorted(lost, key=lambda index: (near[index], -objects.area[index], index))
    errors = Errors(score, confusion, kinds, confused, [int(index) for index in lost])
    errors.labels = _label_errors(detections, objects, errors, right)
    return errors


def _kind(index: int, detections: Detections, objects: Objects, objects_of: dict) -> str:
    """Kind of a false positive that isn't confused with another class.

    ``objects_of`` has the positions of each image's objects, see :func:`by_image`.
    """
    near = objects_of.get(detections.image[index])
    if near is None:
        return 'background'
    # The IoU with a crowd is the share of the detection that lies on it.
    ious = iou(detections.box[[index]], objects.box[near], objects.crowd[near])[0]
    own = (objects.label[near] == detections.label[index]) & ~objects.crowd[near]
    best = ious[own].max(initial=0)
    if best >= IOU:
        return 'duplicate'
    if best >= APART:
        return 'misplaced'
    return 'other' if ious.max() >= APART else 'background'


def _best_score(index: int, detections: Detections, objects: Objects, detections_of: dict) -> float:
    """The highest score of a detection of an object's class near it, or 0.

    Near is an IoU of at least 0.1; the detection may have found another object.
    ``detections_of`` has the positions of each image's detections, see :func:`by_image`.
    """
    near = detections_of.get(objects.image[index], np.zeros(0, int))
    near = near[detections.label[near] == objects.label[index]]
    if not len(near):
        return 0.0
    ious = iou(detections.box[near], objects.box[[index]], [0])[:, 0]
    return float(detections.score[near][ious >= APART].max(initial=0))


def _label_errors(
    detections: Detections, objects: Objects, errors: Errors, right: np.ndarray
) -> list[LabelError]:
    """What looks like errors of the annotations.

    A false positive counts if at least half of the correct detections of its class have no higher
    score.
    """
    scores = np.sort(detections.score[right])
    of_class = {
        label: np.sort(detections.score[right][detections.label[right] == label])
        for label in np.unique(detections.label[right])
    }

    def certainty(index: int) -> float:
        among = of_class.get(detections.label[index], scores)
        place = np.searchsorted(among, detections.score[index], side='right')
        return place / len(among) if len(among) else 0.0

    lonely = _one_of_a_place(detections, errors.kinds['background'])
    found = [LabelError('missing', certainty(i), i, []) for i in lonely]
    found += [LabelError('class', certainty(i), i, [other]) for i, other in errors.confused]
    found = [error for error in found if error.certainty >= 0.5]
    for members in by_image(objects).values():
        members = members[~objects.crowd[members]]
        ious = iou(objects.box[members], objects.box[members], [0] * len(members))
        for one, other in zip(*np.nonzero(np.triu(ious, 1) >= TWICE), strict=True):
            first, second = int(members[one]), int(members[other])
            if objects.label[first] == objects.label[second]:
                found.append(LabelError('twice', float(ious[one, other]), None, [first, second]))
    return sorted(found, key=lambda error: -error.certainty)


def _one_of_a_place(detections: Detections, indices: list[int]) -> list[int]:
    """Those of the detections that no earlier one overlaps: each place once."""
    kept: dict[int, list[int]] = {}
    for index in indices:
        others = kept.setdefault(int(detections.image[index]), [])
        boxes = detections.box[[index]], detections.box[others]
        if not others or iou(*boxes, [0] * len(others)).max() < APART:
            others.append(index)
    return [index for index in indices if index in kept[int(detections.image[index])]]


def _chosen(boxes: Boxes, indices: np.ndarray) -> Boxes:
    return Boxes(boxes.image[indices], boxes.label[indices], boxes.box[indices])
