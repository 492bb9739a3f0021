"""COCO-format data whose annotation file is checked before training starts."""

import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine import fileio
from mmengine.logging import print_log

# Fields that every entry of a list must have. COCO's evaluation needs two more, see below.
REQUIRED = {
    'images': ('id', 'file_name', 'height', 'width'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox'),
    'categories': ('id', 'name'),
}
REQUIRED_BY_EVALUATION = ('area', 'iscrowd')
SHOWN = 5


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset`` that checks its annotation file and says what it drops.

    Class names come from ``metainfo=dict(classes=...)``, or from the file's categories where none
    are given; category ids may start anywhere and have gaps. Classes are numbered in the order of
    the file's categories, as ``CocoMetric`` does it; given names in another order are an error.

    Dropped, counted and reported in one warning: boxes with a coordinate that is no finite number,
    without area, wholly outside the image, or thinner than one pixel. Images without objects are
    kept unless ``filter_cfg=dict(filter_empty_gt=True)``.

    Args: those of :class:`mmdet.datasets.CocoDataset`.

    Raises:
        FileNotFoundError: If the annotation file cannot be opened.
        ValueError: If it is not JSON or not in COCO's format, has two images, annotations or
            categories of one id or two categories of one name, an annotation of an unknown image
            or category, or lacks one of the given classes.
    """

    # No default classes: without any given, those of the file hold.
    METAINFO: dict = {}

    def load_data_list(self) -> list[dict]:
        """Read, check and clean the annotations; see :class:`mmengine.dataset.BaseDataset`."""
        content = self._read()
        self._check_shape(content)
        self._check_references(content)
        classes = self._resolve_classes([category['name'] for category in content['categories']])
        self._metainfo['classes'] = classes
        self.cat_ids = [c['id'] for c in content['categories'] if c['name'] in classes]
        self.cat2label = {category_id: label for label, category_id in enumerate(self.cat_ids)}

        annotations_of = defaultdict(list)
        self.cat_img_map = defaultdict(list)
        for annotation in self._drop_bad_boxes(content):
            annotations_of[annotation['image_id']].append(annotation)
            self.cat_img_map[annotation['category_id']].append(annotation['image_id'])
        return [
            self.parse_data_info(
                {
                    'raw_img_info': {**image, 'img_id': image['id']},
                    'raw_ann_info': annotations_of[image['id']],
                }
            )
            for image in content['images']
        ]

    def _read(self) -> object:
        try:
            text = fileio.get(self.ann_file, backend_args=self.backend_args)
        except OSError as error:
            raise FileNotFoundError(
                f'Cannot open annotation file {self.ann_file} ({error.strerror or error}). '
                'Check data_root and ann_file of the dataset in the config.'
            ) from error
        try:
            return json.loads(text)
        except ValueError as error:  # also text in no Unicode encoding
            raise ValueError(
                f'Annotation file {self.ann_file} is not JSON ({error}). '
                'It must be a COCO annotation file; if it was downloaded, download it again.'
            ) from error

    def _check_shape(self, content: object) -> None:
        """The lists and fields of COCO's format; fills in what training can do without."""
        form = 'COCO format is {"images": [...], "annotations": [...], "categories": [...]}.'
        if not isinstance(content, dict):
            raise self._error(f'holds a {type(content).__name__}, not an object. {form}')
        if self.test_mode:
            # Files of test images have no annotations.
            content.setdefault('annotations', [])
        for name, fields in REQUIRED.items():
            if not isinstance(content.get(name), list):
                raise self._error(f'has no list "{name}". {form}')
            if name == 'annotations' and self.test_mode:
                fields = fields + REQUIRED_BY_EVALUATION
            for position, entry in enumerate(content[name]):
                missing = [f for f in fields if not isinstance(entry, dict) or f not in entry]
                if missing:
                    raise self._error(
                        f'lacks {", ".join(missing)} in entry {position} of "{name}": '
                        f'{str(entry)[:200]}. Add it to every entry.'
                    )
        for annotation in content['annotations']:
            bbox = annotation['bbox']
            if not (
                isinstance(bbox, list)
                and len(bbox) == 4
                and all(isinstance(number, int | float) for number in bbox)
            ):
                raise self._error(
                    f'has annotation {annotation["id"]} with bbox {bbox!r}. '
                    'It must be [x, y, width, height] in pixels.'
                )
            annotation.setdefault('area', bbox[2] * bbox[3])

    def _check_references(self, content: dict) -> None:
        for name in REQUIRED:
            self._check_unique(name, 'id', [entry['id'] for entry in content[name]])
        self._check_unique('categories', 'name', [c['name'] for c in content['categories']])
        for name, field in (('images', 'image_id'), ('categories', 'category_id')):
            known = {entry['id'] for entry in content[name]}
            stray = [a for a in content['annotations'] if a[field] not in known]
            if stray:
                raise self._error(
                    f'has {len(stray)} annotations whose {field} is not in "{name}": '
                    + _some(f'annotation {a["id"]} with {field} {a[field]!r}' for a in stray)
                    + f'. Remove them, or add what they refer to to "{name}".'
                )

    def _check_unique(self, name: str, field: str, values: list) -> None:
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise self._error(
                f'has entries of "{name}" with the same {field}: {_some(map(repr, repeated))}. '
                f'Give each its own {field}.'
            )

    def _resolve_classes(self, names: list[str]) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers."""
        given = self._metainfo.get('classes')
        if given is None:
            return tuple(names)
        given = tuple(given)
        unknown = [name for name in given if name not in names]
        if unknown:
            raise self._error(
                f'has no category {_some(map(repr, unknown))}, given in metainfo classes. '
                f'Its categories: {_some(map(repr, names), 100)}.'
            )
        ordered = tuple(name for name in names if name in given)
        if given != ordered:
            raise self._error(
                'has its categories in another order than metainfo classes, and classes are '
                f'numbered in the order of the file. Write classes={ordered!r}, got {given!r}.'
            )
        return given

    def _drop_bad_boxes(self, content: dict) -> list[dict]:
        """The annotations with a usable box; reports the others."""
        images = {image['id']: image for image in content['images']}
        good, examples = [], defaultdict(list)
        for annotation in content['annotations']:
            image = images[annotation['image_id']]
            fault = box_fault(annotation, image['width'], image['height'])
            if fault is None:
                good.append(annotation)
            else:
                examples[fault].append(image['file_name'])
        if examples:
            report = '; '.join(
                f'{len(files)} {fault} ({_some(dict.fromkeys(files))})'
                for fault, files in examples.items()
            )
            print_log(
                f'Annotation file {self.ann_file}: dropped '
                f'{len(content["annotations"]) - len(good)} of {len(content["annotations"])} '
                f'boxes: {report}',
                logger='current',
                level=logging.WARNING,
            )
        return good

    def _error(self, what: str) -> ValueError:
        return ValueError(f'Annotation file {self.ann_file} {what}')


def box_fault(annotation: dict, width: int, height: int) -> str | None:
    """What makes a box unusable for training, or None.

    Args:
        annotation: Entry of COCO's "annotations", ``bbox`` (x, y, w, h) in pixels.
        width: Width of its image.
        height: Height of its image.
    """
    x, y, w, h = annotation['bbox']
    if not all(math.isfinite(number) for number in (x, y, w, h, annotation['area'])):
        return 'with a coordinate that is not finite'
    if w <= 0 or h <= 0 or annotation['area'] <= 0:
        return 'without area'
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return 'outside the image'
    if w < 1 or h < 1:
        return 'thinner than one pixel'
    return None


def _some(items: Iterable[str], limit: int = SHOWN) -> str:
    """The first few of ``items``, for a message."""
    items = [str(item) for item in items]
    rest = f' and {len(items) - limit} more' if len(items) > limit else ''
    return ', '.join(items[:limit]) + rest
