"""What is wrong with the annotations of a file that has COCO's form."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..utils.text import some
from .annotation_file import is_finite
from .annotation_problems import DROPPED, PROBLEMS, Finding


@dataclass
class CheckedAnnotations:
    """The usable part of an annotation file, and what was found.

    Attributes:
        images: Entries of "images", each image once.
        annotations: Entries of "annotations" that can be used, of the classes alone.
        total: Number of annotations in the file.
        classes: Names of the classes in the order of their numbers.
        category_ids: Ids of the categories of these names, in the same order.
        findings: All that is unusual.
    """

    images: list[dict]
    annotations: list[dict]
    total: int
    classes: tuple[str, ...] = ()
    category_ids: list = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def refusal(self) -> str | None:
        """Why training or evaluation cannot use the file, and the remedy; None where they can."""
        breaking = [finding for finding in self.findings if finding.breaks]
        if not breaking:
            return None
        first = breaking[0].problem
        said = some(finding.says for finding in breaking if finding.problem == first)
        return f'has {PROBLEMS[first].title}: {said}. {PROBLEMS[first].remedy}'

    def dropped(self) -> str | None:
        """How many boxes were dropped, why, and in which images; None where none were."""
        reasons = defaultdict(list)
        for finding in self.findings:
            if finding.problem in DROPPED:
                reasons[finding.problem].append(finding.image or finding.says)
        if not reasons:
            return None
        titles = {problem: PROBLEMS[problem].title.removeprefix('boxes ') for problem in reasons}
        report = '; '.join(
            f'{len(places)} {titles[problem]} ({some(dict.fromkeys(places))})'
            for problem, places in reasons.items()
        )
        count = sum(map(len, reasons.values()))
        return f'dropped {count} of {self.total} boxes: {report}'


def check_annotations(
    content: dict,
    classes: Sequence[str] | None = None,
    evaluation: bool = False,
) -> CheckedAnnotations:
    """Find what can be used of an annotation file, and name everything that is unusual.

    Args:
        content: Content of the file, as :func:`~.annotation_file.read_annotation_file` gives it.
        classes: Names of the classes to train on. Default: all categories of the file.
        evaluation: Whether COCO's evaluation will read the file too.
    """
    checked = CheckedAnnotations(content['images'], [], len(content['annotations']))

    def found(problem: str, says: object, image: str | None = None, bbox: Sequence = ()) -> None:
        breaks = PROBLEMS[problem].breaks
        breaks = breaks is True or breaks == ('evaluation' if evaluation else 'training')
        checked.findings.append(Finding(problem, breaks, str(says), image, tuple(bbox)))

    _check_images(checked, found)
    _check_categories(checked, content['categories'], classes, found)
    _check_boxes(checked, content, found)
    if evaluation:
        for annotation in content['annotations']:
            if annotation['id'] == 0:
                found('annotation_id_zero', f'in image {annotation["image_id"]!r}')
    return checked


def _check_images(checked: CheckedAnnotations, found: Callable) -> None:
    if not checked.images:
        found('no_images', '"images" is empty')
    first = {}
    for image in checked.images:
        earlier = first.setdefault(image['id'], image)
        if earlier is not image:
            same = all(earlier[key] == image[key] for key in ('file_name', 'width', 'height'))
            problem = 'repeated_image' if same else 'repeated_image_id'
            found(problem, repr(image['id']), image['file_name'])
    checked.images = list(first.values())
    names = set()
    for image in checked.images:
        if image['file_name'] in names:
            found(
                'repeated_file_name',
                f'{image["file_name"]} (id {image["id"]!r})',
                image['file_name'],
            )
        names.add(image['file_name'])


def _check_categories(
    checked: CheckedAnnotations,
    categories: list[dict],
    given: Sequence[str] | None,
    found: Callable,
) -> None:
    for key, problem in (('id', 'repeated_category_id'), ('name', 'repeated_category_name')):
        for value, count in Counter(category[key] for category in categories).items():
            if count > 1:
                found(problem, repr(value))
    ids = {category['name']: category['id'] for category in categories}
    if isinstance(given, str):
        # In Python, ('cat') is a string, whose letters would be the names.
        found('classes_differ', f'classes is a string: write ({given!r},)')
        given = [given]
    checked.classes = tuple(ids if given is None else given)
    for name, count in Counter(checked.classes).items():
        if count > 1:
            found('classes_differ', f'{name!r} is {count} times in metainfo classes')
    unknown = [name for name in checked.classes if name not in ids]
    if unknown:
        found(
            'classes_differ',
            f'no category {some(map(repr, unknown))}, given in metainfo classes; '
            f'the categories are {some(map(repr, ids), 100)}, '
            f'the classes {some(map(repr, checked.classes), 100)}',
        )
    checked.category_ids = [ids[name] for name in checked.classes if name in ids]


def _check_boxes(checked: CheckedAnnotations, content: dict, found: Callable) -> None:
    images = {image['id']: image for image in checked.images}
    categories = {category['id']: category['name'] for category in content['categories']}
    ids, boxes, left_out = set(), set(), Counter()
    chosen = set(checked.category_ids)
    for annotation in content['annotations']:
        image = images.get(annotation['image_id'])
        says = f'annotation {annotation["id"]!r}'
        name = image and image['file_name']
        if annotation['id'] in ids:
            found('repeated_annotation_id', repr(annotation['id']), name)
        ids.add(annotation['id'])
        if image is None:
            found('unknown_image', f'{says} with image_id {annotation["image_id"]!r}')
            continue
        bbox = annotation['bbox']
        if annotation['category_id'] not in categories:
            says = f'{says} with category_id {annotation["category_id"]!r}'
            found('unknown_category', says, name, bbox)
            continue
        if annotation['category_id'] not in chosen:
            left_out[annotation['category_id']] += 1
            continue
        fault = box_fault(annotation, image['width'], image['height'])
        if fault is not None:
            if fault == 'box_without_area':
                says = f'{says} of {bbox[2]} x {bbox[3]} pixels with area {annotation["area"]}'
            found(fault, says, name, bbox)
            continue
        checked.annotations.append(annotation)
        for problem in _peculiarities(annotation, image):
            found(problem, says, name, bbox)
        box = (annotation['image_id'], annotation['category_id'], *bbox)
        if box in boxes:
            found('repeated_box', says, name, bbox)
        boxes.add(box)
    with_objects = {annotation['image_id'] for annotation in checked.annotations}
    for image in checked.images:
        if image['id'] not in with_objects:
            found('image_without_objects', image['file_name'], image['file_name'])
    used = {annotation['category_id'] for annotation in checked.annotations}
    for category_id in checked.category_ids:
        if category_id not in used:
            found('unused_category', repr(categories[category_id]))
    for category_id, count in left_out.items():
        found('category_left_out', f'{categories[category_id]!r} ({count} boxes)')
    if content['annotations'] and not checked.annotations and not left_out:
        found('no_usable_box', f'0 of {checked.total}')


def box_fault(annotation: dict, width: float, height: float) -> str | None:
    """What makes a box unusable for training, as a key of ``PROBLEMS``, or None.

    Args:
        annotation: Entry of COCO's "annotations", ``bbox`` (x, y, w, h) in pixels.
        width: Width of its image.
        height: Height of its image.
    """
    x, y, w, h = annotation['bbox']
    if not all(is_finite(number) for number in (x, y, w, h, annotation['area'])):
        return 'box_not_finite'
    if w <= 0 or h <= 0 or annotation['area'] <= 0:
        return 'box_without_area'
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return 'box_outside'
    if w < 1 or h < 1:
        return 'box_too_thin'
    if annotation.get('ignore'):
        return 'box_ignored'
    return None


def _peculiarities(annotation: dict, image: dict) -> list[str]:
    """What is unusual about a box that training uses, as keys of ``PROBLEMS``."""
    x, y, w, h = annotation['bbox']
    found = []
    if x < 0 or y < 0 or x + w > image['width'] or y + h > image['height']:
        found.append('box_partly_outside')
    if annotation.get('iscrowd'):
        found.append('crowd')
    return found
