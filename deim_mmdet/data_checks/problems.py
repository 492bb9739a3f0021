"""The faults of data sets: in annotations, in images, and of both together with a config."""

from ..datasets import annotation_problems
from ..datasets.annotation_problems import Problem

SKIPPABLE = 'stops there, or goes on with skip_unreadable=True'
PROBLEMS = {
    'unusable_file': Problem(
        'annotation files that are missing, not JSON or not in COCO format', 'refused', breaks=True
    ),
    'other_format': Problem('data sets in other formats than COCO', 'not checked'),
    **annotation_problems.PROBLEMS,
    'no_annotations': Problem(
        'annotation files without annotations of the classes, in a set that has no other',
        'refused; AP is -1 in evaluation',
        'Check ann_file and metainfo=dict(classes=...) of the data set, and whatever wrote the '
        'file.',
        breaks='training',
    ),
    'beyond_metric_limit': Problem(
        'images with more objects than detections that count',
        'AP counts the rest as missed',
        'Raise what is named: detections (max_per_img) and queries (num_queries) of the model to '
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
        "Load with LoadImageChecked, color_type='color_ignore_orientation' (for 'unchanged': "
        "'unchanged_ignore_orientation'), in training and testing. LoadImageFromFile turns TIFFs "
        'whatever it is told.',
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
