"""Numbers of objects by class and size, in the evaluated and in the training set."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from mmdet.registry import DATASETS
from mmengine.config import Config

from ..data_checks.config import reads_coco
from ..datasets.annotation_file import read_annotation_file
from ..datasets.annotations import check_annotations
from ..utils.components import component_name, dataset_configs
from .matching import Objects

#: COCO's sizes, by the area in the annotation file; each begins where the one before ends.
SIZES = dict(small=32**2, medium=96**2, large=float('inf'))
#: Upper ends of the ranges of sizes as the network sees them: the root of the box's area, pixels.
INPUT_SIZES = (8, 16, 32, 64, 128, float('inf'))


def size_of(area: float) -> str:
    """COCO's name for the size of an area in square pixels."""
    return next(name for name, end in SIZES.items() if area < end)


def count_sizes(areas: Iterable[float]) -> dict[str, int]:
    """Numbers of objects: ``all``, and of each of COCO's sizes."""
    counts = Counter(size_of(area) for area in areas)
    return dict(all=counts.total(), **{name: counts[name] for name in SIZES})


@dataclass
class TrainingCounts:
    """Objects of the training set.

    Attributes:
        files: Its annotation files.
        images: Number of its images.
        areas: Areas of the objects by class name; crowds don't count.
        note: Why it couldn't be counted; empty where it could.
    """

    files: list[str] = field(default_factory=list)
    images: int = 0
    areas: dict[str, list[float]] = field(default_factory=dict)
    note: str = ''

    def of(self, names: Sequence[str]) -> dict[str, int] | None:
        """Counts of these classes together; None where the training set couldn't be counted."""
        if self.note:
            return None
        return count_sizes(area for name in names for area in self.areas.get(name, ()))


def count_training(config: Config) -> TrainingCounts:
    """Count the objects that the training set of a config has, whatever a sampler repeats.

    Only data sets in COCO's format are counted. What can't be counted is said in ``note``; nothing
    is raised.
    """
    outer = (config.get('train_dataloader') or {}).get('dataset')
    parts, counts = list(dataset_configs(outer)), TrainingCounts()
    if not parts:
        counts.note = 'the config has no training set'
    for options in parts:
        if not reads_coco(options):
            counts.note = f"the training set isn't in COCO's format ({component_name(options)})"
            break
        dataset = DATASETS.build(dict(options, pipeline=[], lazy_init=True))
        counts.files.append(dataset.ann_file)
        try:
            content = read_annotation_file(dataset.ann_file, False, dataset.backend_args)
        except (OSError, ValueError) as error:
            counts.note = str(error)
            break
        checked = check_annotations(content, dataset.metainfo.get('classes'))
        names = {category['id']: category['name'] for category in content['categories']}
        counts.images += len(checked.images)
        for annotation in checked.annotations:
            if not annotation.get('iscrowd'):
                name = names[annotation['category_id']]
                counts.areas.setdefault(name, []).append(annotation['area'])
    return counts


def count_input_sizes(objects: Objects, factors: np.ndarray, score: float) -> list[dict]:
    """Objects by their size at the network's input, and how many of them were found.

    Args:
        objects: Objects; crowds don't count.
        factors: (images, 2) factors of width and height from annotated to input pixels.
        score: Least score of the detections that count.

    Returns:
        For each range ``from``, ``to`` (None without end) in pixels, ``objects`` and ``found``.
    """
    sides = np.sqrt(np.prod(objects.box[:, 2:] * factors[objects.image], axis=1))
    counts, start = [], 0
    for end in INPUT_SIZES:
        inside = ~objects.crowd & (sides >= start) & (sides < end)
        counts.append(
            {
                'from': start,
                'to': end if np.isfinite(end) else None,
                'objects': int(np.count_nonzero(inside)),
                'found': int(np.count_nonzero(inside & (objects.found_at >= score))),
            }
        )
        start = end
    return counts
