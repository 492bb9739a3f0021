"""COCO's average precision by class, size and IoU."""

from collections.abc import Sequence

from mmdet.datasets.api_wrappers import COCO, COCOeval

from ..evaluation.coco_metric import coco_evaluation, faster_evaluation
from .counts import SIZES
from .matching import quiet

#: Names of the figures: IoUs from 0.5 to 0.95, one IoU, or the objects of one size.
FIGURES = ('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large')


class AveragePrecision:
    """AP of detections, computed by pycocotools or faster-coco-eval.

    Args:
        annotations: The objects.
        found: Detections as entries of COCO's results.
        category_ids: The classes, in ascending order.
        image_ids: The images.
        most: The number of detections of a class in an image that count.
    """

    def __init__(
        self,
        annotations: COCO,
        found: list[dict],
        category_ids: Sequence[int],
        image_ids: Sequence,
        most: int,
    ) -> None:
        with quiet():
            evaluation = coco_evaluation(faster_evaluation() or COCOeval, annotations, found)
            settings = evaluation.params
            settings.catIds, settings.imgIds = list(category_ids), list(image_ids)
            settings.maxDets = [most]
            evaluation.evaluate()
            evaluation.accumulate()
        self.ious = [float(value) for value in settings.iouThrs]
        # Axes: IoU, recall, class, area, detections.
        self._table = evaluation.eval['precision'][..., 0]

    def figures(self, label: int | None = None) -> dict[str, float | None]:
        """The ``FIGURES`` of a class, or their means over classes; None without an object."""
        areas = dict(zip(('all', *SIZES), range(4), strict=True))
        values = dict(
            AP=self._mean(label),
            AP50=self._mean(label, iou=self.ious.index(0.5)),
            AP75=self._mean(label, iou=self.ious.index(0.75)),
        )
        for size in SIZES:
            values[f'AP_{size}'] = self._mean(label, areas[size])
        return values

    def by_iou(self) -> list[dict[str, float | None]]:
        """The mean over classes at each IoU."""
        return [dict(iou=iou, AP=self._mean(None, iou=i)) for i, iou in enumerate(self.ious)]

    def _mean(self, label: int | None, area: int = 0, iou: int | None = None) -> float | None:
        table = self._table[..., area]
        if label is not None:
            table = table[..., label]
        if iou is not None:
            table = table[iou]
        known = table[table > -1]
        return float(known.mean()) if known.size else None
