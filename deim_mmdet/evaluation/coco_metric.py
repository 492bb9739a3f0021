"""COCO's AP with classes by name, and boxes in the pixels of the annotation file."""

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmdet.datasets.api_wrappers import COCO, COCOeval, COCOevalMP
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.logging import print_log

from .. import compat
from ..datasets.annotated_size import box_factors, size_warning
from ..utils.errors import MissingPackageError, UserError
from ..utils.tables import format_table
from .coco_tables import CocoTables, coco_entries, faster_evaluation

# Detections of a class in an image that count for ``mAP``, as on COCO's leaderboard.
AP_DETECTIONS = 100
# Kinds of figures that are computed here; mmdet computes the others.
OWN_KINDS = ('bbox', 'segm')
DEFAULT_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
# Names of figures: the kind, the part of the objects, and the number of detections that count.
FIGURE = re.compile(r'(mAP|AR)(?:_(50|75|s|m|l))?(?:@(\d+))?')
# What the part says of size and IoU.
PARTS = {
    None: {},
    '50': {'iou': 0.5},
    '75': {'iou': 0.75},
    's': {'size': 'small'},
    'm': {'size': 'medium'},
    'l': {'size': 'large'},
}


def ap_detections(proposal_nums: Sequence[int]) -> int:
    """Detections of a class in an image that count for ``mAP``: 100, or the largest without 100."""
    return AP_DETECTIONS if AP_DETECTIONS in proposal_nums else max(proposal_nums)


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` that assumes nothing about the annotation file.

    - Labels are positions in ``dataset_meta['classes']``, the model's classes. They stand for the
      categories *of these names*, whatever order and ids the categories have in the file.
    - Figures by class (``classwise=True``) carry the name of their class.
    - If an image has another size than annotated, its boxes are scaled to the annotated size.
    - ``proposal_nums`` need not contain 100. ``mAP`` then counts as many detections of a class in
      an image as its largest number; in mmdet 3.3.0 it would be -1.
    - Without a single detection the figures are 0; mmdet 3.3.0 gives none.
    - Where faster-coco-eval is installed, it computes the tables of precision and recall, with
      pycocotools' numbers. Figures of proposals stay mmdet's.

    In all other cases the figures are those of ``CocoMetric``.

    Args:
        ann_file: Annotation file in COCO's format. Default None: the samples have the objects.
        faster: Whether faster-coco-eval computes the tables. None: where it is installed, and
            ``use_mp_eval`` (mmdet's evaluation in eight processes) is off. It leaves files with
            strings as ids to pycocotools.
        kwargs: Arguments of :class:`mmdet.evaluation.CocoMetric`.

    Raises:
        ImportError: ``faster`` is on, but faster-coco-eval can't be imported.
        ValueError: ``metric_items`` names a figure that there isn't. Or, in the evaluation, a class
            has no category of its name in the file; the message lists both.
    """

    def __init__(self, ann_file: str | None = None, faster: bool | None = None, **kwargs) -> None:
        super().__init__(ann_file, **kwargs)
        if faster and faster_evaluation() is None:
            raise MissingPackageError(
                'faster=True needs faster-coco-eval: pip install faster-coco-eval'
            )
        self.faster = faster
        #: The annotation file, for messages; None where there is none or its name isn't known.
        self.ann_file = ann_file
        #: Content of the annotation file; None until objects have been taken from the samples.
        self.annotations: COCO | None = compat.annotations_of(self)
        self._size_warned = False
        for item in self.metric_items or ():
            self._check_item(item)

    def _check_item(self, item: str) -> None:
        parsed = FIGURE.fullmatch(item)
        limit = parsed and parsed[3]
        needs_limit = parsed and parsed[1] == 'AR'
        if not parsed or needs_limit != (limit is not None):
            known = f'{", ".join(DEFAULT_ITEMS)}, AR@100, AR_s@1000 and the like'
        elif limit is not None and int(limit) not in self.proposal_nums:
            known = f'AR@N with N one of proposal_nums={self.proposal_nums}'
        else:
            return
        raise UserError(f'metric_items: there is no {item!r}; there are {known}')

    @property
    def categories(self) -> dict[str, int]:
        """Id of each category of the annotation file, by its name."""
        return {category['name']: id for id, category in self.annotations.cats.items()}

    def category_ids(self, classes: Sequence[str]) -> list[int]:
        """Ids of the categories that have the names of ``classes``, in the order of ``classes``.

        Raises:
            ValueError: The file lacks one of them; the message lists both.
        """
        ids = self.categories
        missing = [name for name in classes if name not in ids]
        if missing:
            raise UserError(
                f'the annotation file of the evaluator, {self.ann_file}, has no category '
                f'{", ".join(map(repr, missing))}: its categories are {list(ids)}, but the '
                f"model's classes {list(classes)}. Name them alike in all files"
            )
        return [ids[name] for name in classes]

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Take in the detections of a batch; see :class:`mmdet.evaluation.CocoMetric`."""
        first = len(self.results)
        super().process(data_batch, _on_host(data_samples))
        if self.annotations is not None:
            for (_, found), sample in zip(self.results[first:], data_samples, strict=True):
                self._scale_to_annotations(found, sample)

    def _scale_to_annotations(self, found: dict, sample: dict) -> None:
        """Scale the boxes of an image from the size as read to the size in the annotation file."""
        image = self.annotations.imgs.get(sample['img_id'])
        read = tuple(sample['ori_shape'][:2])
        if image is None or (image['height'], image['width']) == read:
            return
        annotated = image['height'], image['width']
        if not self._size_warned:
            self._size_warned = True
            path = sample.get('img_path', image['file_name'])
            print_log(size_warning(path, annotated, read), logger='current', level=logging.WARNING)
        x, y = box_factors(annotated, read)
        found['bboxes'] = found['bboxes'] / np.array([x, y, x, y], dtype=np.float32)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Figures of all images; see :class:`mmdet.evaluation.CocoMetric`."""
        own = [kind for kind in self.metrics if kind in OWN_KINDS]
        others = [kind for kind in self.metrics if kind not in OWN_KINDS]
        truths, found = zip(*results, strict=True)
        figures = {}
        with tempfile.TemporaryDirectory() as folder:
            prefix = self.outfile_prefix or str(Path(folder) / 'results')
            if self.annotations is None:
                self.annotations = COCO(self.gt_to_coco_json(truths, prefix))
            # mmdet's own look-up (3.3.0) would number labels in the order of the file.
            self.cat_ids = self.category_ids(self.dataset_meta['classes'])
            if self.img_ids is None:
                self.img_ids = self.annotations.get_img_ids()
            if others and not self.format_only:
                self.metrics = others
                figures.update(super().compute_metrics(results))
                self.metrics = [*own, *others]
            if self.outfile_prefix:
                self.results2json(found, prefix)
            if self.format_only:
                print_log(f'results are saved as {prefix}.*.json', logger='current')
                return {}
            for kind in own:
                figures.update(self._evaluate(kind, coco_entries(found, self.cat_ids, kind)))
        return figures

    def _evaluate(self, kind: str, found: list[dict]) -> dict[str, float]:
        """Figures of one kind, 'bbox' or 'segm', from detections in COCO's form."""
        tables = self._tables(kind, found)
        items = self.metric_items or DEFAULT_ITEMS
        figures = {f'{kind}_{item}': round(self._figure(tables, item), 3) for item in items}
        if self.classwise:
            figures.update(self._by_class(tables))
        default = ' '.join(f'{self._figure(tables, item):.3f}' for item in DEFAULT_ITEMS)
        # The same name as mmdet's: people search logs for it.
        print_log(f'{kind}_mAP_copypaste: {default}', logger='current')
        return figures

    def _tables(self, kind: str, found: list[dict]) -> CocoTables:
        """COCO's tables of precision and recall."""
        return CocoTables(
            self.annotations,
            found,
            self.cat_ids,
            self.img_ids,
            self.proposal_nums,
            self.iou_thrs,
            kind,
            self._evaluation_class(),
        )

    def _evaluation_class(self) -> type:
        """pycocotools' ``COCOeval``, or a class that computes the same."""
        if self.faster or (self.faster is None and not self.use_mp_eval):
            return faster_evaluation() or COCOeval
        return COCOevalMP if self.use_mp_eval else COCOeval

    def _figure(self, tables: CocoTables, item: str, category: int | None = None) -> float:
        """The figure of a name, of all categories or of one's id; -1 where there are no objects."""
        kind, part, limit = FIGURE.fullmatch(item).groups()
        if item == 'mAP' and category is None:
            limit = ap_detections(self.proposal_nums)
        table = tables.precision if kind == 'mAP' else tables.recall
        limit = None if limit is None else int(limit)
        value = tables.mean(table, category=category, limit=limit, **PARTS[part])
        return -1.0 if value is None else value

    def _by_class(self, tables: CocoTables) -> dict[str, float]:
        """``<name>_precision`` of each class, NaN without objects; logs all figures."""
        figures, rows = {}, [('category', *DEFAULT_ITEMS)]
        for name, category in zip(self.dataset_meta['classes'], self.cat_ids, strict=True):
            values = [self._figure(tables, item, category) for item in DEFAULT_ITEMS]
            values = [round(value, 3) if value > -1 else float('nan') for value in values]
            figures[f'{name}_precision'] = values[0]
            rows.append((name, *map(str, values)))
        print_log(f'\n{format_table(rows)}', logger='current')
        return figures


def _on_host(samples: Sequence[dict]) -> Sequence[dict]:
    """The samples with boxes, scores and labels on the host, where one transfer fetches them all.

    ``CocoMetric`` makes three for each image, and waits for the GPU each time.
    """
    found = [sample['pred_instances'] for sample in samples]
    names = ('bboxes', 'scores', 'labels')
    tensors = [[each[name] for each in found] for name in names]
    if not all(isinstance(tensor, torch.Tensor) for each in tensors for tensor in each):
        return samples
    boxes, scores, labels = (torch.cat(each) for each in tensors)
    # Labels are exact in single precision, whatever that of the boxes.
    packed = torch.cat([boxes, torch.stack([scores, labels.to(torch.float32)], dim=1)], dim=1)
    parts = packed.cpu().split([len(each) for each in tensors[2]])
    return [
        {
            **sample,
            'pred_instances': {
                **each,
                'bboxes': part[:, :-2].to(each['bboxes'].dtype),
                'scores': part[:, -2].to(each['scores'].dtype),
                'labels': part[:, -1].to(each['labels'].dtype),
            },
        }
        for sample, each, part in zip(samples, found, parts, strict=True)
    ]
