"""Small pictures with boxes, and sheets of them."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

CAPTION_HEIGHT = 26
GAP = 6
FONT = cv2.FONT_HERSHEY_SIMPLEX


def class_colour(label: int) -> tuple[int, int, int]:
    """A BGR colour for class ``label``, far from those of its neighbours."""
    # Steps of the golden ratio round the circle of hues never come close together.
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 1.0)
    return int(255 * blue), int(255 * green), int(255 * red)


def draw_tile(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str] = (),
    scores: np.ndarray | None = None,
    side: int = 320,
    colours: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """Scale an image to fit a square and draw boxes on it.

    Args:
        image: (H, W, 3) uint8, BGR.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of ``image``.
        labels: (N,) class indices; they choose the colours.
        classes: Class names to write on the boxes, none where a name is empty. Default: none.
        scores: (N,) scores in [0, 1], written after the names.
        side: Side of the tile in pixels.
        colours: BGR colour of each class. Default: :func:`class_colour`.

    Returns:
        (side, side, 3) uint8, BGR; the image in the middle on grey.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    shrinks = scale < 1
    image = cv2.resize(
        image,
        (new_width, new_height),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC,
    )
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        colour = class_colour(int(label)) if colours is None else colours[int(label)]
        x1, y1, x2, y2 = (round(float(value) * scale) for value in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, 2)
        if not classes or not classes[int(label)]:
            continue
        text = classes[int(label)] + ('' if scores is None else f' {scores[index]:.2f}')
        (text_width, text_height), _ = cv2.getTextSize(text, FONT, 0.42, 1)
        left = min(max(x1, 0), max(0, new_width - text_width - 2))
        bottom = y1 if y1 > text_height + 4 else y1 + text_height + 5
        top_left = (left, bottom - text_height - 4)
        cv2.rectangle(image, top_left, (left + text_width + 2, bottom), colour, cv2.FILLED)
        cv2.putText(image, text, (left + 1, bottom - 3), FONT, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    tile = np.full((side, side, 3), 90, np.uint8)
    top, left = (side - new_height) // 2, (side - new_width) // 2
    tile[top : top + new_height, left : left + new_width] = image
    return tile


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str] | None = None
) -> np.ndarray:
    """Put tiles of one size into a sheet.

    Args:
        rows: Rows of (side, side, 3) uint8 tiles; rows may differ in length.
        captions: One line of text above each row.

    Returns:
        (H, W, 3) uint8, white between the tiles.
    """
    if not any(len(row) for row in rows):
        raise ValueError('a contact sheet needs at least one tile')
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f'{len(captions)} captions for {len(rows)} rows')
    side = next(row[0].shape[0] for row in rows if len(row))
    head = CAPTION_HEIGHT if captions else 0
    columns = max(len(row) for row in rows)
    height = GAP + len(rows) * (head + side + GAP)
    sheet = np.full((height, GAP + columns * (side + GAP), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        top = GAP + i * (head + side + GAP)
        if captions:
            cv2.putText(sheet, captions[i], (GAP, top + 18), FONT, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        for j, tile in enumerate(row):
            left = GAP + j * (side + GAP)
            sheet[top + head : top + head + side, left : left + side] = tile
    return sheet
