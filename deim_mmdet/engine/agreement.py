"""Agreement of data sets, evaluators and checkpoint: by the names of classes, images and files."""

import copy
import logging
import os.path as osp
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import PackDetInputs
from mmdet.evaluation import CocoMetric, MultiDatasetsEvaluator
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.fileio import load
from mmengine.logging import print_log
from torch.utils.data import Dataset

from .. import compat
from ..datasets import CheckedCocoDataset
from ..evaluation import CheckedCocoMetric
from ..utils.components import component_class
from ..utils.errors import UserError
from ..utils.text import some
from .checks import base_datasets, class_names, parts_of_dataset

# A message shows at most so many names of a list: COCO's 80, but not all of LVIS.
SHOWN_NAMES = 100
#: The first word of the config's options for a split.
OPTIONS = dict(validation='val', test='test')


def annotation_files(dataset) -> str:
    """The files that a data set is read from, for messages."""
    return some(
        dict.fromkeys(str(getattr(base, 'ann_file', base)) for base in base_datasets(dataset))
    )


def check_numbering(dataset) -> None:
    """Refuse a ``CocoDataset`` of mmdet whose labels don't stand for its class names.

    Such a data set numbers labels in the order of the file's categories, in whatever order the
    classes are given (mmdet 3.3.0).

    Raises:
        ValueError: The orders differ; the message lists both.
    """
    for base in base_datasets(dataset):
        classes = class_names(base)
        if (
            isinstance(base, CheckedCocoDataset)
            or type(base).load_data_list is not CocoDataset.load_data_list
            # COCO's own classes with COCO's own files, which take long to read.
            or classes == tuple(type(base).METAINFO.get('classes', ()))
        ):
            continue
        categories = load(base.ann_file, backend_args=base.backend_args)['categories']
        in_file = tuple(c['name'] for c in categories if c['name'] in classes)
        if in_file != classes:
            raise UserError(
                f'{base.ann_file}: {type(base).__name__} numbers its classes in the order of the '
                f'file, {list(in_file)}, but they are given as {list(classes)}: use '
                "type='CheckedCocoDataset', which numbers them as given"
            )


def set_class_order(dataset, classes: Sequence[str], what: str, whose: str) -> bool:
    """Number the classes of a data set in a given order, by their names.

    Args:
        dataset: Data set, possibly under wrappers; one without class names is left alone.
        classes: The names in the order wanted.
        what: How messages call the data set.
        whose: How messages call the owner of ``classes``.

    Returns:
        Whether any label has changed.

    Raises:
        ValueError: The names differ, or the data set can't change its numbers; the message lists
            both.
    """
    classes, changed = tuple(classes), False
    for part in base_datasets(dataset):
        own = class_names(part)
        if own is None or own == classes:
            continue
        lists = f'{what} ({annotation_files(part)}) {list(own)}, {whose} {list(classes)}'
        if sorted(own) != sorted(classes):
            raise UserError(
                f'classes differ: {lists}. Only the first has '
                f'{some(map(repr, (n for n in own if n not in classes)), SHOWN_NAMES) or "none"}, '
                f'only the second '
                f'{some(map(repr, (n for n in classes if n not in own)), SHOWN_NAMES) or "none"}. '
                'Name them alike in all annotation files; metainfo=dict(classes=(...)) of a data '
                'set chooses among the categories of its file'
            )
        if not hasattr(part, 'set_class_order'):
            remedy = (
                "use type='CheckedCocoDataset'"
                if isinstance(part, CocoDataset)
                else f'give the data set metainfo=dict(classes={classes})'
            )
            raise UserError(f'classes have another order: {lists}. Here, {remedy}')
        part.set_class_order(classes)
        changed = True
    for part in parts_of_dataset(dataset):
        # A wrapper keeps a copy of its parts' names, made when it was built.
        kept = compat.own_metainfo(part)
        if changed:
            kept['classes'] = classes
    return changed


def named_categories(evaluator: Any) -> Any:
    """The config of an evaluator whose COCO metrics find the categories by their names.

    Args:
        evaluator: The config, which stays as it is. ``CheckedCocoMetric`` takes the place of each
            ``CocoMetric`` of mmdet. What is built already is returned.
    """
    if isinstance(evaluator, list | tuple):
        return [named_categories(part) for part in evaluator]
    if not isinstance(evaluator, Mapping):
        return evaluator
    evaluator = copy.copy(evaluator)
    if 'metrics' in evaluator:
        evaluator['metrics'] = named_categories(evaluator['metrics'])
    elif component_class(METRICS, evaluator) is CocoMetric:
        # The class, as its name is known in mmdet's scope alone.
        evaluator['type'] = CheckedCocoMetric
    return evaluator


def check_evaluator(evaluator: Evaluator, dataset, split: str) -> None:
    """Compare the annotation files of an evaluator's COCO metrics with the data set.

    Images are compared by id, file name and size, categories by name. A metric without a file
    agrees if the samples hold the objects.

    Args:
        evaluator: Evaluator of the loop.
        dataset: Data set of the loop.
        split: 'validation' or 'test'.

    Raises:
        ValueError: They differ; the message names both files, what differs and the remedy. Or a
            metric is mmdet's ``CocoMetric``, which doesn't find categories by name, or finds no
            objects.
    """
    parts = [dataset] * len(evaluator.metrics)
    if isinstance(evaluator, MultiDatasetsEvaluator):
        parts = getattr(dataset, 'datasets', parts)
    checked: dict[int, list[dict]] = {}
    for metric, part in zip(evaluator.metrics, parts, strict=True):
        if type(metric) is CocoMetric and compat.annotations_of(metric) is not None:
            raise UserError(
                f'the {split} evaluator has a CocoMetric, which takes the classes in the order of '
                "its file: use type='CheckedCocoMetric', which finds them by name. DEIMRunner does "
                'so by itself where the evaluator is given as a config'
            )
        if isinstance(metric, CocoMetric) and compat.annotations_of(metric) is None:
            _check_objects_are_packed(part, split)
            continue
        if not isinstance(metric, CheckedCocoMetric):
            continue
        if id(part) not in checked:
            checked[id(part)] = [part.get_data_info(index) for index in range(len(part))]
        # What a data set leaves out of its file on purpose is missing in it by right.
        annotated = {
            id: image for id, image in metric.annotations.imgs.items() if not _left_out(part, image)
        }
        fault = _fault_of_images(checked[id(part)], annotated)
        if fault is None:
            try:
                metric.category_ids(class_names(part) or ())
            except ValueError as error:
                fault = error
        if fault is not None:
            option = OPTIONS[split]
            raise UserError(
                f'the {split} data set ({annotation_files(part)}) and its evaluator '
                f'({metric.ann_file}) do not agree: {fault}. Give both the same file: '
                f'{option}_dataloader.dataset.ann_file and {option}_evaluator.ann_file. A part '
                'of the images needs a file of its own; indices=... of the data set is not enough'
            )


def checked_test_set(cfg: Config, classes: Sequence[str] | None) -> tuple[Dataset, Evaluator]:
    """The config's test set and its evaluator, for a detector that no runner evaluates.

    Args:
        cfg: The config.
        classes: Class names in the order of the detector's labels, which the config may list in
            another order; None if they are unknown.

    Raises:
        ValueError: The test set has other classes, or its evaluator another file; the message names
            both.
    """
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    evaluator = Evaluator(named_categories(cfg.test_evaluator))
    check_numbering(dataset)
    if classes is not None:
        set_class_order(dataset, classes, 'the test data set', 'the checkpoint')
    evaluator.dataset_meta = dataset.metainfo
    check_evaluator(evaluator, dataset, 'test')
    return dataset, evaluator


def _check_objects_are_packed(dataset, split: str) -> None:
    for base in base_datasets(dataset):
        packs = [step for step in base.pipeline.transforms if isinstance(step, PackDetInputs)]
        if packs and not any('instances' in pack.meta_keys for pack in packs):
            raise UserError(
                f'the {split} evaluator has no ann_file, so it takes the objects from the samples, '
                f'but {type(packs[0]).__name__} leaves them out of those: add "instances" to its '
                f'meta_keys in the {split} pipeline, or set {OPTIONS[split]}_evaluator.ann_file'
            )


def _left_out(dataset, image: dict) -> bool:
    """Whether a data set leaves out an image, given by its entry in the annotation file."""
    return any(
        isinstance(base, CheckedCocoDataset) and base.image_file(image) is None
        for base in base_datasets(dataset)
    )


def _fault_of_images(infos: Sequence[dict], annotated: dict[Any, dict]) -> str | None:
    """How a data set's images differ from the ``annotated`` ones (by id); None if they don't."""
    counts = Counter(info['img_id'] for info in infos)
    repeated = [str(id) for id, count in counts.items() if count > 1]
    if repeated:
        return f'the data set holds the images with the ids {some(repeated)} more than once'
    unknown = [str(id) for id in counts if id not in annotated]
    missing = [str(id) for id in annotated if id not in counts]
    if unknown or missing:
        return (
            f'{len(unknown)} of the {len(counts)} images of the data set are not in the '
            f"evaluator's file (ids {some(unknown) or 'none'}), and {len(missing)} of the "
            f"{len(annotated)} of the evaluator's not in the data set (ids "
            f'{some(missing) or "none"})'
        )
    for info in infos:
        image = annotated[info['img_id']]
        name = osp.basename(info['img_path'])
        if name != osp.basename(image['file_name']):
            return (
                f'image {info["img_id"]!r} is {name} in the one, {image["file_name"]} in the other'
            )
        sizes = [(part['width'], part['height']) for part in (info, image)]
        if sizes[0] != sizes[1]:
            return f'image {name} is annotated as {sizes[0]} in the one, {sizes[1]} in the other'
    return None


def say_unnamed(classes: Sequence[str], reason: str) -> None:
    """Warn that the order of a checkpoint's classes is not known."""
    print_log(
        f'{reason}: its scores are taken for the classes in the order of the data set, '
        f'{some(classes, SHOWN_NAMES)}',
        logger='current',
        level=logging.WARNING,
    )
