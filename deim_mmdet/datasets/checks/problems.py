"""The faults that data sets have, and what training does about each of them."""

from collections.abc import Iterable
from typing import NamedTuple

SHOWN = 5


class Problem(NamedTuple):
    """A kind of fault.

    ``title`` reads on from a count; ``training`` says what training does with such data; ``remedy``
    is what the user can do. ``breaks`` is True for what training refuses or stops at,
    'training' or 'evaluation' where only sets for that are refused.
    """

    title: str
    training: str
    remedy: str = ''
    breaks: bool | str = False


SKIPPABLE = 'stops there, or goes on with skip_unreadable=True'
PROBLEMS = {
    # The annotation file as a whole.
    'unusable_file': Problem(
        'annotation files that are missing, not JSON or not in COCO format', 'refused', breaks=True
    ),
    'other_format': Problem('data sets in other formats than COCO', 'not checked'),
    'repeated_image_id': Problem(
        'entries of "images" with the same id, but other contents',
        'refused: whose annotations are they?',
        'Give each its own id.',
        breaks=True,
    ),
    'repeated_category_id': Problem(
        'entries of "categories" with the same id', 'refused', 'Give each its own id.', breaks=True
    ),
    'repeated_category_name': Problem(
        'entries of "categories" with the same name',
        'refused',
        'Give each its own name.',
        breaks=True,
    ),
    'classes_differ': Problem(
        'classes in the config that do not fit "categories"',
        'refused',
        'Set metainfo=dict(classes=...) of the data set.',
        breaks=True,
    ),
    'no_usable_box': Problem(
        'annotation files none of whose boxes can be used',
        'refused',
        'See the warning about dropped boxes.',
        breaks='training',
    ),
    'repeated_annotation_id': Problem(
        'entries of "annotations" with the same id',
        "trained on; evaluation refused, COCO's would count one of them twice",
        'Give each its own id.',
        breaks='evaluation',
    ),
    'annotation_id_zero': Problem(
        'annotations with id 0',
        'trained on; evaluated, but COCO\'s evaluation takes id 0 as "not found"',
        'Number annotations from 1.',
    ),
    'repeated_image': Problem('entries of "images" that are there twice', 'one of them is used'),
    'unused_category': Problem(
        'categories without a usable box', 'kept: the class has an output and never an object'
    ),
    # Boxes.
    'unknown_image': Problem('boxes whose image_id is not in "images"', 'dropped'),
    'unknown_category': Problem('boxes whose category_id is not in "categories"', 'dropped'),
    'box_not_finite': Problem('boxes with a coordinate that is not finite', 'dropped'),
    'box_without_area': Problem('boxes without area', 'dropped'),
    'box_outside': Problem('boxes outside the image', 'dropped'),
    'box_too_thin': Problem('boxes thinner than one pixel', 'dropped'),
    'box_ignored': Problem('boxes marked "ignore"', 'dropped'),
    'box_partly_outside': Problem('boxes partly outside the image', 'cut at the border'),
    'repeated_box': Problem('boxes of one class that are there twice', 'trained on as two objects'),
    'crowd': Problem('regions of a crowd', 'not trained on; no error in evaluation'),
    # Images.
    'image_without_objects': Problem(
        'images without objects', 'trained on, unless filter_cfg=dict(filter_empty_gt=True)'
    ),
    'beyond_metric_limit': Problem(
        'images with more objects than detections that count',
        'AP counts the rest as missed',
        'Raise what is named: max_per_img of model.test_cfg and num_queries of model.bbox_head to '
        'that many, proposal_nums of the evaluators to (1, 10, 500), say. AP counts 100 if 100 is '
        "among these; without it, AP needs type='CheckedCocoMetric'.",
    ),
    'size_differs': Problem(
        'images of another size than the annotation file says',
        'boxes are taken as pixels of the annotated size and scaled; one warning',
        'Where the boxes are in pixels of the image as it is, correct width and height.',
    ),
    'exif_turned': Problem(
        'images turned by their EXIF orientation', 'turned, as viewers show them'
    ),
    'exif_not_annotated': Problem(
        'images turned by their EXIF orientation, but annotated unturned',
        'turned, so that the boxes do not fit; one warning',
        "Load with color_type='color_ignore_orientation', in training and testing.",
    ),
    'greyscale': Problem('greyscale images', 'three equal channels'),
    'deep': Problem('images of more than 8 bits a channel', 'the upper 8 bits'),
    'alpha': Problem('images with an alpha channel', 'without it'),
    'palette': Problem('images with a palette', 'in their colours'),
    'image_missing': Problem('images that cannot be opened', SKIPPABLE, breaks=True),
    'image_empty': Problem('empty files (0 bytes)', SKIPPABLE, breaks=True),
    'image_truncated': Problem(
        'truncated images',
        f'{SKIPPABLE}; in evaluation, older versions of OpenCV fill in grey',
        breaks=True,
    ),
    'image_unreadable': Problem('files that cannot be decoded', SKIPPABLE, breaks=True),
    'image_huge': Problem('images of more than 179 million pixels', SKIPPABLE, breaks=True),
}

#: What makes a box unusable: it is dropped, and reported.
DROPPED = tuple(name for name, problem in PROBLEMS.items() if problem.training == 'dropped')


class Finding(NamedTuple):
    """A fault at its place.

    ``image`` is the file name of the image concerned, ``bbox`` the box (x, y, w, h) in pixels as in
    the file; None or empty where it is about something else. ``says`` names the place in words.
    """

    problem: str
    breaks: bool
    says: str
    image: str | None = None
    bbox: tuple = ()


def some(items: Iterable[str], limit: int = SHOWN) -> str:
    """The first few of ``items``, for a message."""
    items = [str(item) for item in items]
    rest = f' and {len(items) - limit} more' if len(items) > limit else ''
    return ', '.join(items[:limit]) + rest
