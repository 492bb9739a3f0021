"""Finds images with more objects than evaluators or model can count as found."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS, MODELS
from mmengine.config import Config

from ..datasets.annotation_problems import Finding
from ..datasets.annotations import CheckedAnnotations
from ..evaluation.coco_metric import ap_detections
from ..models.dense_heads.flat_config import setting
from ..models.dense_heads.query_selection_head import QuerySelectionHead
from ..utils.components import find_components, is_component

EVALUATORS = dict(validation='val_evaluator', test='test_evaluator')
# Defaults of mmdet's evaluation, and of this package's heads for queries and for detections.
DEFAULT_PROPOSALS = (100, 300, 1000)
DEFAULT_QUERIES = 300


class DetectionLimit(NamedTuple):
    """The largest number of detections of an image that count.

    Attributes:
        option: The config's option that sets it. An evaluator's option has no evaluator's name
            here, so that a set used for both validation and test is checked once.
        most: The number.
        of_class: Whether it is the number for each class of the image.
    """

    option: str
    most: int
    of_class: bool


def detection_limits(config: Config, split: str) -> list[DetectionLimit]:
    """The limits on detections in the validation or test set; training has none.

    COCO's AP takes the best detections of an image for each class.
    """
    if split not in EVALUATORS:
        return []
    metrics = find_components(METRICS, config.get(EVALUATORS[split]), CocoMetric)
    counted = [ap_detections(m.get('proposal_nums', DEFAULT_PROPOSALS)) for m in metrics]
    limits = [DetectionLimit('proposal_nums', min(counted), True)] if counted else []
    model = config.get('model') or {}
    head = model.get('bbox_head') or {}
    kept = (model.get('test_cfg') or {}).get('max_per_img')
    options = {
        'model.test_cfg.max_per_img': kept,
        'model.bbox_head.num_queries': head.get('num_queries'),
    }
    if is_component(MODELS, head, QuerySelectionHead):
        kept, queries = kept or setting(head, 'max_per_img'), setting(head, 'num_queries')
        options = {
            'model.bbox_head.postprocess.max_per_img': kept or DEFAULT_QUERIES,
            'model.bbox_head.query_selection.num_queries': queries or DEFAULT_QUERIES,
        }
    for option, most in options.items():
        if most is not None:
            limits.append(DetectionLimit(option, most, False))
    return limits


def beyond_limits(checked: CheckedAnnotations, limits: list[DetectionLimit]) -> Iterator[Finding]:
    """A finding for each image with more objects than a limit; crowds don't count as objects."""
    ids = set(checked.category_ids)
    counts: dict[object, Counter] = defaultdict(Counter)
    for annotation in checked.annotations:
        if annotation['category_id'] in ids and not annotation.get('iscrowd'):
            counts[annotation['image_id']][annotation['category_id']] += 1
    for image in checked.images:
        classes = counts[image['id']]
        of_class, of_all = max(classes.values(), default=0), classes.total()
        reasons = [
            f'{of_class} of one class, {option} lets {most} count'
            if by_class
            else f'{of_all} objects, {option} is {most}'
            for option, most, by_class in limits
            if (of_class if by_class else of_all) > most
        ]
        if reasons:
            name = image['file_name']
            yield Finding('beyond_metric_limit', False, f'{name} ({"; ".join(reasons)})', name)
