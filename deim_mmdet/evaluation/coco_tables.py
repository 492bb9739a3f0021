"""COCO's tables of precision and recall, and means over their parts."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmengine.logging import print_log

#: Ranges of the objects' areas, in the order of the tables.
SIZES = ('all', 'small', 'medium', 'large')


def faster_evaluation() -> type | None:
    """The evaluation class of faster-coco-eval; None where it can't be imported."""
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        return None
    return COCOeval_faster


def coco_entries(
    found: Iterable[dict], category_ids: Sequence[int], kind: str = 'bbox'
) -> list[dict]:
    """Entries of COCO's results for the detections of images.

    Entries of masks have no box: COCO's evaluation would take the box's area for the mask's.

    Args:
        found: For each image ``img_id``, ``labels`` (N,), ``scores`` (N,), and ``bboxes`` (N, 4) as
            (x1, y1, x2, y2) in pixels, or N ``masks`` with their ``mask_scores``, if there are
            some.
        category_ids: Id of each class's category, by label.
        kind: 'bbox' or 'segm'.
    """
    entries = []
    for image in found:
        if kind == 'segm':
            name, values = 'segmentation', image['masks']
            scores = image.get('mask_scores', image['scores'])
        else:
            name, scores = 'bbox', image['scores']
            values = image['bboxes'].astype(float)
            values[:, 2:] -= values[:, :2]
            values = values.tolist()
        entries += [
            {'image_id': image['img_id'], 'category_id': category_ids[i], 'score': s, name: v}
            for i, s, v in zip(image['labels'], scores.tolist(), values, strict=True)
        ]
    return entries


def coco_evaluation(evaluator: type, annotations: COCO, found: list[dict], kind: str = 'bbox'):
    """An evaluation of detections, its parameters still to be set.

    Args:
        evaluator: pycocotools' ``COCOeval`` or a class that computes the same.
        annotations: The objects.
        found: Detections as entries of COCO's results; they get ids from 1 on, in their order.
        kind: 'bbox' or 'segm'.
    """
    if found:
        detections = annotations.loadRes(found)
    else:
        print_log('There is not a single detection', logger='current', level=logging.WARNING)
        detections = COCO()
        detections.dataset = {**annotations.dataset, 'annotations': []}
        detections.createIndex()
    return evaluator(annotations, detections, kind)


class CocoTables:
    """Precision and recall of detections by IoU, class, size of the objects and their number.

    Args:
        annotations: The objects.
        found: Detections as entries of COCO's results.
        category_ids: The classes.
        image_ids: The images.
        limits: Numbers of detections of a class in an image that count.
        ious: Least IoUs of a detection and its object. Default: COCO's, from 0.5 to 0.95.
        kind: 'bbox' or 'segm'.
        evaluator: pycocotools' ``COCOeval`` or a class that computes the same. Default: that of
            faster-coco-eval where it is installed. That takes no strings as ids: pycocotools
            computes the tables then.

    Attributes:
        ious: The IoUs.
        precision: Table with the axes (IoU, recall, class, size, limit). Classes are in the order
            of their ids, limits in ascending order. -1 stands for no object.
        recall: The same without recall.
    """

    def __init__(
        self,
        annotations: COCO,
        found: list[dict],
        category_ids: Sequence[int],
        image_ids: Sequence,
        limits: Sequence[int],
        ious: Sequence[float] | None = None,
        kind: str = 'bbox',
        evaluator: type | None = None,
    ) -> None:
        faster = faster_evaluation()
        evaluator = evaluator or faster or COCOeval
        if evaluator is faster and any(isinstance(id, str) for id in (*image_ids, *category_ids)):
            # faster-coco-eval takes numbers alone.
            evaluator = COCOeval
        evaluation = coco_evaluation(evaluator, annotations, found, kind)
        settings = evaluation.params
        self._categories = settings.catIds = sorted(category_ids)
        self._limits = settings.maxDets = sorted(limits)
        settings.imgIds = image_ids
        if ious is not None:
            settings.iouThrs = ious
        evaluation.evaluate()
        evaluation.accumulate()
        self.ious = [float(iou) for iou in settings.iouThrs]
        self.precision, self.recall = evaluation.eval['precision'], evaluation.eval['recall']

    def mean(
        self,
        table: np.ndarray,
        size: str = 'all',
        iou: float | None = None,
        category: int | None = None,
        limit: int | None = None,
    ) -> float | None:
        """The mean over a part of a table; None where that has no objects.

        Args:
            table: ``precision`` or ``recall``.
            size: Size of the objects, one of ``SIZES``.
            iou: The IoU; None takes all.
            category: Id of the class; None takes all.
            limit: Number of detections that count; None takes the largest.
        """
        limit = -1 if limit is None else self._limits.index(limit)
        table = table[..., SIZES.index(size), limit]
        if category is not None:
            table = table[..., self._categories.index(category)]
        if iou is not None:
            table = table[np.isclose(self.ious, iou)]
        known = table[table > -1]
        return float(known.mean()) if known.size else None
