"""The faults that annotations have, and what training does about each of them."""

from typing import NamedTuple


class Problem(NamedTuple):
    """A kind of fault.

    Attributes:
        title: What it is called, after a count.
        training: What training does with such data.
        remedy: What the user can do, as a sentence.
        breaks: True where training and evaluation refuse the data; 'training' or 'evaluation' where
            only that one refuses them.
    """

    title: str
    training: str
    remedy: str = ''
    breaks: bool | str = False


PROBLEMS = {
    # The annotation file as a whole.
    'no_images': Problem(
        'annotation files without images',
        'refused',
        'Check ann_file of the data set, or list the images in "images".',
        breaks=True,
    ),
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
        'Set metainfo=dict(classes=...) of the data set, or add the category to the file: it '
        'needs no object there.',
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
    'repeated_file_name': Problem(
        'entries of "images" with the file name of an earlier one, but another id',
        'trained on as images of their own: the objects of the others are background',
        'Join entries of one file, so that its annotations have one image_id.',
    ),
    'unused_category': Problem(
        'categories without a usable box', 'kept: the class has an output and never an object'
    ),
    'category_left_out': Problem(
        'categories with boxes that are not among the classes of the config', 'not used'
    ),
    # Boxes.
    'unknown_image': Problem('boxes whose image_id is not in "images"', 'dropped'),
    'unknown_category': Problem('boxes whose category_id is not in "categories"', 'dropped'),
    'box_not_finite': Problem('boxes with a coordinate that is not finite', 'dropped'),
    'box_without_area': Problem('boxes without area', 'dropped'),
    'box_outside': Problem('boxes outside the image', 'dropped'),
    'box_too_thin': Problem('boxes thinner than one pixel', 'dropped'),
    'box_ignored': Problem('boxes marked "ignore"', 'dropped'),
    'box_partly_outside': Problem(
        'boxes partly outside the image',
        'cut at the border',
        'Where these are many: is bbox [x, y, width, height], not [x1, y1, x2, y2]?',
    ),
    'repeated_box': Problem('boxes of one class that are there twice', 'trained on as two objects'),
    'crowd': Problem('regions of a crowd', 'not trained on; no error in evaluation'),
    # Images.
    'image_without_objects': Problem(
        'images without objects', 'trained on, unless filter_cfg=dict(filter_empty_gt=True)'
    ),
}

#: What makes a box unusable: it is dropped, and reported.
DROPPED = tuple(name for name, problem in PROBLEMS.items() if problem.training == 'dropped')


class Finding(NamedTuple):
    """A fault at its place.

    Attributes:
        problem: Key of :data:`PROBLEMS`.
        breaks: Whether the data are refused for it.
        says: The place in words.
        image: File name of the image concerned; None where there is none.
        bbox: The box concerned, (x, y, w, h) in pixels as in the file; empty where there is none.
    """

    problem: str
    breaks: bool
    says: str
    image: str | None = None
    bbox: tuple = ()
