"""Pictures of what was found in a data set."""

import os.path as osp
from collections.abc import Sequence

import numpy as np

from ..datasets.pictures import read_picture
from ..visualization import contact_sheet, draw_tile
from .problems import PROBLEMS
from .report import DatasetReport

COLUMNS = 6
SIDE = 224


def draw_report(reports: Sequence[DatasetReport]) -> np.ndarray | None:
    """A row of example images for each problem, with the boxes concerned.

    Returns:
        (H, W, 3) uint8, BGR; None where no problem has an image that can be read.
    """
    rows, captions = [], []
    for report in reports:
        for name, count in report.problems.items():
            tiles = []
            for example in count.examples:
                tile = _draw(example, report.image_folder)
                if tile is not None and len(tiles) < COLUMNS:
                    tiles.append(tile)
            if tiles:
                rows.append(tiles)
                captions.append(f'{report.splits[0]}: {count.count} {PROBLEMS[name].title}')
    return contact_sheet(rows, captions) if rows else None


def _draw(example: dict, folder: str) -> np.ndarray | None:
    if example['image'] is None:
        return None
    try:
        img = read_picture(osp.join(folder, example['image']))
    except Exception:  # an unreadable image may be the very problem
        return None
    bbox = example['bbox'] or []
    boxes = np.zeros((0, 4))
    if bbox and None not in bbox:
        x, y, w, h = bbox
        sides = np.array([img.shape[1], img.shape[0]] * 2)
        # OpenCV's coordinates overflow far outside of the image.
        boxes = np.clip([[x, y, x + w, y + h]], -sides, 2 * sides)
    return draw_tile(img, boxes, np.zeros(len(boxes), int), side=SIDE)
