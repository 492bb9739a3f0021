"""Everything that a report says, as one dictionary for JSON; the page shows nothing else."""

import os.path as osp
from dataclasses import dataclass

import numpy as np
from mmdet.datasets.api_wrappers import COCO

from ..evaluation.coco_metric import AP_DETECTIONS
from ..evaluation.coco_tables import CocoTables, coco_entries
from .counts import SIZES, TrainingCounts, count_input_sizes, count_sizes
from .curves import curve
from .errors import KINDS, Errors, find_errors
from .matching import Detections, Objects, match, quiet
from .words import stands_out

# What of COCO's tables each figure is the mean of.
FIGURES = {
    'AP': {},
    'AP50': {'iou': 0.5},
    'AP75': {'iou': 0.75},
    **{f'AP_{size}': {'size': size} for size in SIZES},
}


@dataclass
class Evaluated:
    """An evaluation: objects and detections of a set of images.

    Attributes:
        annotations: The objects.
        category_ids: Id of each class's category, by label.
        image_ids: The images that count.
        collected: Entries of the images, see
            :meth:`~deim_mmdet.reports.collector.DetectionCollector.process`.
        about: What the report says of config, weights and data: texts by their headings.
    """

    annotations: COCO
    category_ids: list[int]
    image_ids: list
    collected: list[dict]
    about: dict[str, str]


@dataclass
class Analysis:
    """A report's content, and what its pictures are drawn from.

    Attributes:
        content: All that the report says.
        images: By position of an image its entry of the annotation file, with ``path`` of the
            image as it was read (None where unknown).
        names: Class names by position.
        detections: Detections that count.
        objects: Objects.
        errors: What is wrong at the score with the best F1.
    """

    content: dict
    images: list[dict]
    names: list[str]
    detections: Detections
    objects: Objects
    errors: Errors


def analyse(evaluated: Evaluated, training: TrainingCounts) -> Analysis:
    """Compute a report's content.

    Args:
        evaluated: The evaluation.
        training: Objects of the training set.
    """
    annotations = evaluated.annotations
    category_ids = sorted(evaluated.category_ids)
    image_ids = sorted(set(evaluated.image_ids))
    names = [annotations.cats[id]['name'] for id in category_ids]
    found = coco_entries(evaluated.collected, evaluated.category_ids)
    with quiet():
        tables = CocoTables(annotations, found, category_ids, image_ids, [AP_DETECTIONS])
    figures = _figures(tables)
    detections, objects = match(annotations, found, category_ids, image_ids, AP_DETECTIONS)
    whole = curve(detections, objects)
    best = whole.best()
    # Without a correct detection no score is better than another: the errors are those of all.
    score = best['score'] if best and best['f1'] else 0.0
    errors = find_errors(detections, objects, len(names), score)

    entry_of = {entry['img_id']: entry for entry in evaluated.collected}
    # An image of the file that wasn't evaluated has no detections, and is taken as it is.
    entries = [entry_of.get(id, dict(path=None, factors=(1.0, 1.0))) for id in image_ids]
    factors = np.array([entry['factors'] for entry in entries]).reshape(-1, 2)
    images = [
        dict(annotations.imgs[id], path=entry['path'])
        for id, entry in zip(image_ids, entries, strict=True)
    ]
    curves = [curve(detections, objects, label) for label in range(len(names))]
    content = dict(
        about=evaluated.about,
        images=len(image_ids),
        objects=int(np.count_nonzero(~objects.crowd)),
        crowds=int(np.count_nonzero(objects.crowd)),
        detections=len(found),
        input=_input_text(evaluated.collected),
        figures=figures,
        figures_by_iou=[
            dict(iou=iou, AP=tables.mean(tables.precision, iou=iou)) for iou in tables.ious
        ],
        threshold=best,
        at_half=whole.at(0.5),
        curve=whole.kept(),
        classes=[
            dict(
                name=name,
                figures=_figures(tables, category_ids[label]),
                val=count_sizes(objects.area[(objects.label == label) & ~objects.crowd]),
                train=training.of([name]),
                threshold=curves[label].best(),
                curve=curves[label].kept(),
            )
            for label, name in enumerate(names)
        ],
        sizes=_sizes(figures, objects, training.of(names)),
        input_sizes=count_input_sizes(objects, factors, score),
        training=dict(files=training.files, images=training.images, note=training.note),
        confusion=dict(score=score, names=[*names, 'background'], counts=errors.confusion.tolist()),
        errors={kind: len(members) for kind, members in errors.kinds.items()},
        error_names=KINDS,
        missed=len(errors.missed),
        label_errors=len(errors.labels),
        pictures={},
    )
    content['stands_out'] = stands_out(content)
    return Analysis(content, images, names, detections, objects, errors)


def _figures(tables: CocoTables, category: int | None = None) -> dict[str, float | None]:
    """The ``FIGURES`` of a category, or their means over all; None without an object."""
    return {
        name: tables.mean(tables.precision, category=category, **part)
        for name, part in FIGURES.items()
    }


def _sizes(figures: dict, objects: Objects, training: dict | None) -> list[dict]:
    counts = count_sizes(objects.area[~objects.crowd])
    return [
        dict(
            name=name,
            AP=figures[f'AP_{name}'],
            val=counts[name],
            train=None if training is None else training[name],
        )
        for name in SIZES
    ]


def _input_text(collected: list[dict]) -> str:
    """Height and width of the network's inputs, as text."""
    shapes = sorted({tuple(int(side) for side in entry['input']) for entry in collected})
    if not shapes:
        return 'unknown'
    text = f'{shapes[0][0]}×{shapes[0][1]}'
    return text if len(shapes) == 1 else f'{text} to {shapes[-1][0]}×{shapes[-1][1]}'


def image_name(image: dict) -> str:
    """The file of an image of :class:`Analysis`, as the annotation file names it."""
    return image.get('file_name') or osp.basename(image['path'] or '') or f'image {image["id"]}'
