"""Pictures of single errors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ..datasets.annotated_size import box_factors
from ..datasets.pictures import read_picture
from ..utils.files import replaced_when_complete
from ..visualization import draw_tile
from .content import Analysis, image_name
from .errors import KINDS

# Pictures of a section, sides of a picture, and least side of what it shows, in pixels.
MOST = 12
SIDE = 300
LEAST_WINDOW = 48
# Side of a window in sides of what it is about.
MARGIN = 2.5
# BGR: annotated objects are green, the detection orange.
ANNOTATED, DETECTED = (90, 200, 60), (0, 140, 255)

#: Headings of the sections.
SECTIONS = dict(
    labels='Likely label errors',
    false_positives='Worst false positives',
    missed='Worst misses',
    confused='Worst class confusions',
)


@dataclass
class Picture:
    """What a picture shows.

    Attributes:
        image: Position of the image.
        caption: The text under it.
        detection: Position of the detection, or None.
        objects: Positions of the objects that it is about; others are drawn without a name.
    """

    image: int
    caption: str
    detection: int | None
    objects: list[int]


def choose_pictures(analysis: Analysis) -> dict[str, list[Picture]]:
    """The worst errors of each section, at most a dozen."""
    errors, names = analysis.errors, analysis.names
    detections, objects = analysis.detections, analysis.objects

    def annotated(index: int) -> str:
        return f'{names[objects.label[index]]} (annotation {objects.id[index]})'

    def detected(index: int) -> str:
        return f'{names[detections.label[index]]} {detections.score[index]:.2f}'

    def false_positive(index: int, says: str, among: list[int]) -> Picture:
        image = int(detections.image[index])
        return Picture(image, f'{detected(index)}: {says}', index, among)

    chosen = {section: [] for section in SECTIONS}
    for error in errors.labels[:MOST]:
        if error.kind == 'twice':
            both = ' and '.join(annotated(index) for index in error.objects)
            caption = f'annotated twice? {both}'
            image = int(objects.image[error.objects[0]])
            chosen['labels'].append(Picture(image, caption, None, error.objects))
        elif error.kind == 'class':
            says = f'annotated as another class? {annotated(error.objects[0])}'
            chosen['labels'].append(false_positive(error.detection, says, error.objects))
        else:
            says = 'an object that is not annotated?'
            chosen['labels'].append(false_positive(error.detection, says, []))
    wrong = [
        (kind, index) for kind, each in errors.kinds.items() if kind != 'confused' for index in each
    ]
    wrong.sort(key=lambda pair: -detections.score[pair[1]])
    for kind, index in wrong[:MOST]:
        chosen['false_positives'].append(false_positive(index, KINDS[kind], []))
    for index in errors.missed[:MOST]:
        caption = f'missed: {annotated(index)}'
        chosen['missed'].append(Picture(int(objects.image[index]), caption, None, [index]))
    for index, other in errors.confused[:MOST]:
        says = f'annotated as {annotated(other)}'
        chosen['confused'].append(false_positive(index, says, [other]))
    return chosen


def draw_pictures(analysis: Analysis, folder: Path) -> dict[str, dict]:
    """Draw the pictures of all sections, as PNG files; progress goes to the terminal.

    Args:
        analysis: The report.
        folder: The report's folder; they are written to its ``pictures``.

    Returns:
        For each section ``title``, ``unreadable`` (pictures whose image couldn't be read) and
        ``shown``: ``file``, ``caption`` and ``image`` of each picture.
    """
    chosen = choose_pictures(analysis)
    sections = {}
    with tqdm(total=sum(map(len, chosen.values())), unit=' pictures', desc='Drawing') as progress:
        for section, pictures in chosen.items():
            shown = []
            for number, picture in enumerate(pictures):
                progress.update()
                tile = _draw(picture, analysis)
                if tile is None:
                    continue
                file = f'pictures/{section}_{number:02d}.png'
                with replaced_when_complete(folder / file) as temporary:
                    cv2.imwrite(str(temporary), tile)
                shown.append(
                    dict(
                        file=file,
                        caption=picture.caption,
                        image=image_name(analysis.images[picture.image]),
                    )
                )
            sections[section] = dict(
                title=SECTIONS[section], unreadable=len(pictures) - len(shown), shown=shown
            )
    return sections


def _draw(picture: Picture, analysis: Analysis) -> np.ndarray | None:
    """A part of the image around what the picture is about; None where it can't be read."""
    about = analysis.images[picture.image]
    if about['path'] is None:
        return None
    try:
        image = read_picture(about['path'])
    except Exception:  # decoders raise what they like; the report counts such images
        return None
    annotated = about['height'], about['width']
    factors = np.array([*box_factors(annotated, image.shape[:2])] * 2)
    boxes, texts, colours = [], [], []
    for box, text, colour in _marks(picture, analysis):
        x, y, w, h = box * factors
        boxes.append([x, y, x + w, y + h])
        texts.append(text)
        colours.append(colour)
    boxes = np.array(boxes)
    named = boxes[np.array([bool(text) for text in texts])]
    left, top, right, bottom = window(named, image.shape[:2])
    boxes = boxes - [left, top, left, top]
    # OpenCV's coordinates overflow far outside of the picture.
    boxes = np.clip(boxes, -(right - left), 2 * (right - left))
    part = np.ascontiguousarray(image[top:bottom, left:right])
    return draw_tile(part, boxes, np.arange(len(boxes)), texts, None, SIDE, colours)


def _marks(picture: Picture, analysis: Analysis) -> Iterator[tuple[np.ndarray, str, tuple]]:
    """Box (x, y, w, h), name and colour of all that is drawn; what matters comes last."""
    objects, names = analysis.objects, analysis.names
    for index in np.flatnonzero(objects.image == picture.image):
        if index not in picture.objects:
            yield objects.box[index], '', ANNOTATED
    for index in picture.objects:
        yield objects.box[index], names[objects.label[index]], ANNOTATED
    if picture.detection is not None:
        detections, index = analysis.detections, picture.detection
        text = f'{names[detections.label[index]]} {detections.score[index]:.2f}'
        yield detections.box[index], text, DETECTED


def window(boxes: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square part of an image around boxes, as far as it lies in the image.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in pixels.
        size: Height and width of the image.

    Returns:
        x1, y1, x2, y2 in whole pixels.
    """
    height, width = size
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    side = max(MARGIN * (high - low).max(), LEAST_WINDOW)
    side = int(min(np.ceil(side), max(height, width)))
    corner = []
    for centre, length in zip((low + high) / 2, (width, height), strict=True):
        start = round(float(np.clip(centre - side / 2, 0, max(length - side, 0))))
        corner.append((start, min(start + side, length)))
    return corner[0][0], corner[1][0], corner[0][1], corner[1][1]
