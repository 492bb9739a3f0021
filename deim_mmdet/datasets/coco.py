"""COCO-format data whose annotation file is checked before training starts."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.datasets import CocoDataset, Objects365V2Dataset
from mmdet.datasets.objects365 import objv2_ignore_list
from mmdet.registry import DATASETS
from mmengine.logging import print_log

from .. import compat
from ..utils.errors import UserError
from ..utils.text import some
from .annotation_file import read_annotation_file
from .annotations import check_annotations


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset`` that checks its annotation file and says what it drops.

    ``metainfo=dict(classes=...)`` gives the class names, or else the file's categories do. Their
    order gives the classes' numbers; order and ids in the file may differ. mmdet 3.3.0's
    ``CocoDataset`` numbers given classes in the order of the file. Evaluate with
    :class:`~deim_mmdet.evaluation.CheckedCocoMetric`, which turns numbers back by name; mmdet's
    ``CocoMetric`` doesn't.

    A box is dropped if a coordinate is not a finite number, if it has no area, lies wholly outside
    the image, is thinner than one pixel or marked "ignore", or if the file lacks its image or
    category. One warning counts the dropped boxes. Images without objects are kept unless
    ``filter_cfg=dict(filter_empty_gt=True)``.

    In test mode the file must also suit COCO's evaluation. That needs ``area``, ``iscrowd`` and
    annotation ids that are integers and differ.

    Arguments are those of :class:`mmdet.datasets.CocoDataset`.

    Raises:
        FileNotFoundError: The annotation file cannot be opened.
        ValueError: There are several. Or it is not JSON or not in COCO's format, has no images,
            two different images or two categories of one id or two categories of one name, lacks
            one of the given classes, has boxes but none that can be used, nests values hundreds of
            levels deep, or has no image that ``filter_cfg`` keeps.
    """

    # No default classes: where none are given, those of the file hold.
    METAINFO: dict = {}

    # New number of each class after set_class_order; None before.
    _new_labels: list[int] | None = None

    def __init__(self, ann_file: str = '', *args, **kwargs) -> None:
        if isinstance(ann_file, list | tuple):
            raise UserError(
                f'{type(self).__name__} reads one annotation file, but ann_file has '
                f"{len(ann_file)} ({some(ann_file)}): join data sets by type='ConcatDataset', "
                'datasets=[...], as configs/own_data/several_sets.py does'
            )
        super().__init__(ann_file, *args, **kwargs)

    def set_class_order(self, classes: Sequence[str]) -> None:
        """Number the classes in another order, e.g. that of a checkpoint.

        Args:
            classes: The names of all classes.

        Raises:
            ValueError: They are not the names of this data set's classes. The message lists both.
        """
        own = self.metainfo['classes']
        if sorted(own) != sorted(classes):
            raise UserError(
                f'the data set of {self.ann_file} has the classes {list(own)}, not '
                f'{list(classes)}: give the same names, in any order'
            )
        position = [own.index(name) for name in classes]
        moved = [list(classes).index(name) for name in own]
        first = range(len(own)) if self._new_labels is None else self._new_labels
        self._new_labels = [moved[label] for label in first]
        compat.own_metainfo(self)['classes'] = tuple(classes)
        self.cat_ids = [self.cat_ids[label] for label in position]
        self.cat2label = {category_id: label for label, category_id in enumerate(self.cat_ids)}

    def get_data_info(self, idx: int) -> dict:
        """Annotations of an image; see :class:`mmengine.dataset.BaseDataset`."""
        info = super().get_data_info(idx)
        if self._new_labels is not None:
            for instance in info['instances']:
                instance['bbox_label'] = self._new_labels[instance['bbox_label']]
        return info

    def full_init(self) -> None:
        """Load the annotations; see :class:`mmengine.dataset.BaseDataset`."""
        try:
            super().full_init()
        except RecursionError as error:  # of pickle, which goes less deep than JSON
            raise UserError(
                f'Annotation file {self.ann_file} nests values of an entry too deeply '
                '(segmentations are lists of lists). Correct it, or leave that field out.'
            ) from error

    def load_data_list(self) -> list[dict]:
        """Read, check and clean the annotations; see :class:`mmengine.dataset.BaseDataset`."""
        content = read_annotation_file(self.ann_file, self.test_mode, self.backend_args)
        checked = check_annotations(content, self.metainfo.get('classes'), self.test_mode)
        dropped, refusal = checked.dropped(), checked.refusal()
        if dropped is not None:
            print_log(
                f'Annotation file {self.ann_file}: {dropped}',
                logger='current',
                level=logging.WARNING,
            )
        if refusal is not None:
            raise UserError(f'Annotation file {self.ann_file} {refusal}')
        compat.own_metainfo(self)['classes'] = checked.classes
        self.cat_ids = checked.category_ids
        self.cat2label = {category_id: label for label, category_id in enumerate(self.cat_ids)}

        annotations_of = defaultdict(list)
        self.cat_img_map = defaultdict(list)
        for annotation in checked.annotations:
            annotations_of[annotation['image_id']].append(annotation)
            self.cat_img_map[annotation['category_id']].append(annotation['image_id'])
        return [
            self.parse_data_info(
                {
                    'raw_img_info': {**image, 'file_name': name, 'img_id': image['id']},
                    'raw_ann_info': annotations_of[image['id']],
                }
            )
            for image in checked.images
            if (name := self.image_file(image)) is not None
        ]

    def filter_data(self) -> list[dict]:
        """The images that ``filter_cfg`` keeps; see :class:`mmengine.dataset.BaseDataset`."""
        kept = super().filter_data()
        if not kept:
            raise UserError(
                f'Annotation file {self.ann_file}: filter_cfg={self.filter_cfg} keeps none of its '
                f'{len(self.data_list)} images, with the classes {some(self.metainfo["classes"])}. '
                'Change filter_cfg, or metainfo=dict(classes=...) of the data set'
            )
        return kept

    def image_file(self, image: Mapping[str, Any]) -> str | None:
        """File of an image relative to the folder of images; None for an image to leave out.

        Args:
            image: Its entry in the annotation file.
        """
        return image['file_name']


@DATASETS.register_module()
class CheckedObjects365V2Dataset(CheckedCocoDataset):
    """Objects365, version 2, with the checks of :class:`CheckedCocoDataset`.

    Classes and images are those of mmdet's ``Objects365V2Dataset``: images lie in ``patch<n>/`` in
    the folder of images, whatever folders the annotation file puts before that. Three images that
    the published archives lack are left out.

    Arguments are those of :class:`mmdet.datasets.CocoDataset`. Raises what
    :class:`CheckedCocoDataset` does.
    """

    METAINFO: dict = Objects365V2Dataset.METAINFO

    def image_file(self, image: Mapping[str, Any]) -> str | None:
        """``patch<n>/<name>``; None for an image that the archives lack."""
        name = '/'.join(image['file_name'].split('/')[-2:])
        return None if name in objv2_ignore_list else name
