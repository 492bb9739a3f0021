"""Takes in the detections of an evaluation, as its COCO metric does."""

from collections.abc import Sequence

from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric, LVISMetric, MultiDatasetsEvaluator
from mmengine.evaluator import BaseMetric, Evaluator

from .. import compat
from ..datasets.annotated_size import box_factors
from ..evaluation import CheckedCocoMetric
from ..utils.errors import UserError


def annotations_of(metric: CocoMetric) -> COCO | None:
    """The objects that a metric compares with; None where it takes them from the samples."""
    if isinstance(metric, CheckedCocoMetric):
        return metric.annotations
    return compat.annotations_of(metric)


def find_metric(evaluator: Evaluator) -> CocoMetric:
    """The COCO metric of an evaluator that a report can be made of.

    Raises:
        ValueError: There is none; the message says what the evaluator has instead.
    """
    needs = "a report needs the boxes of a CocoMetric or CheckedCocoMetric with metric='bbox'"
    if isinstance(evaluator, MultiDatasetsEvaluator):
        raise UserError(f'{needs}, and one data set: the evaluator is for several')
    metrics = [
        metric
        for metric in evaluator.metrics
        if isinstance(metric, CocoMetric) and not isinstance(metric, LVISMetric)
    ]
    if not metrics:
        names = ', '.join(type(metric).__name__ for metric in evaluator.metrics) or 'no metric'
        raise UserError(f'{needs}: the evaluator has {names}')
    with_boxes = [metric for metric in metrics if 'bbox' in metric.metrics]
    if not with_boxes:
        raise UserError(f'{needs}: the evaluator has metric={metrics[0].metrics}')
    metric = with_boxes[0]
    if metric.format_only:
        raise UserError(f'{needs}: with format_only=True it compares with no objects')
    annotations = annotations_of(metric)
    if annotations is not None and not annotations.anns:
        file = getattr(metric, 'ann_file', None) or 'the annotation file of the evaluator'
        raise UserError(f'a report needs annotated objects: {file} has none')
    return metric


class DetectionCollector(BaseMetric):
    """Keeps the detections of an evaluation, and adds no figures to it.

    It must come after the COCO metric in the evaluator: boxes are taken as the metric took them,
    in pixels of the annotated images.

    Args:
        evaluator: The evaluator that it is appended to.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        self.evaluator = evaluator
        #: The images' entries after an evaluation, in the process that computes figures; see
        #: :meth:`process`. None before.
        self.collected: list[dict] | None = None

    @property
    def metric(self) -> CocoMetric:
        """The COCO metric whose detections these are."""
        return find_metric(self.evaluator)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the entry of each image of a batch.

        An entry has ``img_id``, ``path`` (None where unknown), ``input`` (height and width of the
        batch that the network saw), ``factors`` (of width and height, from annotated to input
        pixels), and ``labels`` (N,), ``scores`` (N,) and ``bboxes`` (N, 4) as x1, y1, x2, y2.
        """
        metric = self.metric
        taken = metric.results[len(metric.results) - len(data_samples) :]
        annotations = annotations_of(metric)
        for (_, found), sample in zip(taken, data_samples, strict=True):
            read = tuple(sample['ori_shape'][:2])
            shape = tuple(sample.get('img_shape', read)[:2])
            image = annotations.imgs.get(sample['img_id']) if annotations is not None else None
            scaled = (1.0, 1.0)
            if image is not None:
                scaled = box_factors((image['height'], image['width']), read)
            scale = sample.get('scale_factor')
            if scale is None:
                scale = shape[1] / read[1], shape[0] / read[0]
            self.results.append(
                dict(
                    img_id=sample['img_id'],
                    path=sample.get('img_path'),
                    input=tuple(sample.get('batch_input_shape', shape)),
                    factors=(scaled[0] * scale[0], scaled[1] * scale[1]),
                    labels=found['labels'],
                    scores=found['scores'],
                    bboxes=found['bboxes'],
                )
            )

    def compute_metrics(self, results: list) -> dict:
        """Keep what all processes collected; there are no figures."""
        self.collected = results
        return {}
