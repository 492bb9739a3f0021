"""Make a small detection data set in COCO format out of what scikit-learn ships.

It takes handwritten digits (``sklearn.datasets.load_digits``, 1,797 scans of 8 x 8 pixels),
enlarges them, turns them a little and colours them. It pastes them in many sizes, some overlapping,
onto crops of scikit-learn's two photographs. Training and validation share no source: each scan of
a digit, and each half of a photograph, belongs to one of them.

    python tools/demo/make_dataset.py data/digits --train 800 --val 150 --objects 1 4
    python tools/demo/make_dataset.py data/crowd --train 5000 --objects 8 20 --jobs 4
    python tools/demo/make_dataset.py data/wide --size 128 256
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits, load_sample_images

SETTINGS_FILE = 'settings.json'
SPLITS = ('train', 'val')
VAL_SHARE = 0.25
# From this opacity on, a pixel counts as ink. At half, the eye sees the edge of a stroke.
INK_OPACITY = 0.5
# Every object keeps at least this share of its ink uncovered by those pasted after it.
MIN_VISIBLE = 0.6
MAX_TURN_DEG = 12.0
PLACEMENT_TRIALS = 30
# After so many images a line shows the progress.
PROGRESS_IMAGES = 500


@dataclass(frozen=True)
class SceneSettings:
    """The settings that determine every bit of the data set.

    Args:
        train: Number of training images.
        val: Number of validation images.
        size: Height and width of the images, in pixels.
        objects: Least and greatest number of objects in an image: (1, 3) is sparse, (8, 20) a
            crowd.
        scale: Least and greatest height of an object, as a share of the image's height. The
            logarithm of the height is drawn uniformly, so that small objects are as frequent as
            large ones.
        digits: The digits in use, each a class.
        seed: Seed of everything random. Image i doesn't depend on how many images there are.
    """

    train: int = 800
    val: int = 150
    size: tuple[int, int] = (192, 192)
    objects: tuple[int, int] = (1, 4)
    scale: tuple[float, float] = (0.15, 0.6)
    digits: tuple[int, ...] = tuple(range(10))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train < 1 or self.val < 1:
            raise ValueError(f'train and val must be at least 1, got {self.train} and {self.val}')
        if len(self.size) != 2 or min(self.size) < 32:
            raise ValueError(f'size must be two sides of at least 32 pixels, got {self.size}')
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f'objects must be 0 <= least <= greatest, got {self.objects}')
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f'scale must be 0 < least <= greatest <= 1, got {self.scale}')
        if not self.digits or not set(self.digits) <= set(range(10)):
            raise ValueError(f'digits must be some of 0 to 9, got {self.digits}')

    def as_json(self) -> dict:
        """The settings in the form in which JSON gives them back."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Material:
    """The source material of one split.

    Args:
        scans: For each digit in use, opacities (N, 8, 8) of N scans, float32 in [0, 1].
        photographs: (H, W, 3) uint8 BGR images.
    """

    scans: dict[int, np.ndarray]
    photographs: list[np.ndarray]


@cache
def load_material(settings: SceneSettings, split: str) -> Material:
    """The scans and halves of photographs that belong to ``split`` alone."""
    digits = load_digits()
    opacities = (digits.images / 16).astype(np.float32)
    scans = {}
    for digit in settings.digits:
        indices = np.flatnonzero(digits.target == digit)
        indices = np.random.default_rng([settings.seed, digit]).permutation(indices)
        num_val = round(len(indices) * VAL_SHARE)
        scans[digit] = opacities[indices[:num_val] if split == 'val' else indices[num_val:]]
    photographs = []
    for photograph in load_sample_images().images:
        middle = photograph.shape[1] // 2
        half = photograph[:, middle:] if split == 'val' else photograph[:, :middle]
        photographs.append(np.ascontiguousarray(half[..., ::-1]))
    return Material(scans, photographs)


def draw_background(
    photographs: Sequence[np.ndarray], size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """A (height, width, 3) float32 crop of one photograph, mirrored and dimmed at random."""
    photograph = photographs[rng.integers(len(photographs))]
    height, width = photograph.shape[:2]
    # The largest crop of these proportions that the photograph has room for.
    scale = min(height / size[0], width / size[1]) * rng.uniform(0.4, 1.0)
    rows, columns = int(scale * size[0]), int(scale * size[1])
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    crop = photograph[top : top + rows, left : left + columns]
    crop = cv2.resize(crop, size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return np.ascontiguousarray(crop * rng.uniform(0.5, 1.0))


def draw_ink(scan: np.ndarray, height: float, rng: np.random.Generator) -> np.ndarray:
    """Enlarge an (8, 8) scan to strokes about ``height`` pixels high: (h, w) opacities."""
    rows = np.flatnonzero(scan.max(axis=1) >= INK_OPACITY)
    zoom = height / (rows[-1] - rows[0] + 1)
    stretch = rng.uniform(0.85, 1.15)
    turn = rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG)
    # Enlarged about the middle of the scan into a canvas wide enough for the turned corners.
    canvas = int(np.ceil(8 * zoom * 1.6))
    matrix = cv2.getRotationMatrix2D((3.5, 3.5), turn, zoom)
    matrix[0] *= stretch
    matrix[:, 2] += canvas / 2 - matrix @ np.array([3.5, 3.5, 1.0])
    opacity = cv2.warpAffine(scan, matrix, (canvas, canvas), flags=cv2.INTER_CUBIC)
    # Edges become steeper than by interpolation, like a pen's; strokes keep their smooth outline.
    opacity = np.clip((opacity - 0.5) * 2.5 + 0.5, 0, 1)
    ink = opacity >= INK_OPACITY
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def draw_colour(under: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A BGR colour that stands out from the pixels ``under`` the ink, (N, 3)."""
    bright = under.mean() < 110
    low, high = (170, 256) if bright else (0, 70)
    return rng.uniform(low, high, size=3).astype(np.float32)


def compose(material: Material, settings: SceneSettings, rng: np.random.Generator):
    """Compose one scene.

    Returns:
        The image, (H, W, 3) uint8 BGR; boxes of its N objects, (N, 4) x, y, w, h in pixels,
        tight around the visible ink; and (N,) digits.
    """
    size = settings.size
    image = draw_background(material.photographs, size, rng)
    inks: list[np.ndarray] = []  # (H, W) bool: visible ink of each object
    areas: list[int] = []  # ink before anything covered it
    digits: list[int] = []
    for _ in range(rng.integers(settings.objects[0], settings.objects[1] + 1)):
        digit = int(rng.choice(settings.digits))
        scans = material.scans[digit]
        scan = scans[rng.integers(len(scans))]
        for _ in range(PLACEMENT_TRIALS):
            height = size[0] * np.exp(rng.uniform(*np.log(settings.scale)))
            opacity = draw_ink(scan, height, rng)
            rows, columns = opacity.shape
            if rows > size[0] or columns > size[1]:
                continue
            top = rng.integers(size[0] - rows + 1)
            left = rng.integers(size[1] - columns + 1)
            place = np.s_[top : top + rows, left : left + columns]
            ink = np.zeros(size, bool)
            ink[place] = opacity >= INK_OPACITY
            if all(
                (old & ~ink).sum() >= MIN_VISIBLE * area
                for old, area in zip(inks, areas, strict=True)
            ):
                break
        else:
            continue  # no room left for this one
        colour = draw_colour(image[ink], rng)
        image[place] += opacity[..., None] * (colour - image[place])
        inks = [old & ~ink for old in inks] + [ink]
        areas.append(int(ink.sum()))
        digits.append(digit)
    image = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    boxes = [cv2.boundingRect(ink.astype(np.uint8)) for ink in inks]
    return image, np.array(boxes, np.int64).reshape(-1, 4), np.array(digits, np.int64)


def write_scene(folder: Path, settings: SceneSettings, split: str, index: int):
    """Write image ``index`` of ``split``; returns its (N, 4) boxes and (N,) digits."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    image, boxes, digits = compose(load_material(settings, split), settings, rng)
    path = folder / split / name_of(index)
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f'could not write {path}')
    return boxes, digits


def name_of(index: int) -> str:
    """File name of an image."""
    return f'{index:05d}.jpg'


def write_split(folder: Path, settings: SceneSettings, split: str, jobs: int) -> None:
    """Write the images of ``split``, in ``jobs`` processes, and its annotation file."""
    (folder / split).mkdir()
    coco = {
        'info': {'description': f'handwritten digits on photographs, {split}'},
        'images': [],
        'annotations': [],
        'categories': [
            {'id': i, 'name': f'digit_{digit}'} for i, digit in enumerate(settings.digits, 1)
        ],
    }
    category_ids = {digit: i for i, digit in enumerate(settings.digits, 1)}
    write = partial(write_scene, folder, settings, split)
    count, (height, width) = getattr(settings, split), settings.size
    with ProcessPoolExecutor(jobs) if jobs > 1 else nullcontext() as pool:
        scenes = pool.map(write, range(count), chunksize=20) if pool else map(write, range(count))
        for index, (boxes, digits) in enumerate(scenes):
            coco['images'].append(
                {'id': index, 'file_name': name_of(index), 'width': width, 'height': height}
            )
            for box, digit in zip(boxes.tolist(), digits.tolist(), strict=True):
                coco['annotations'].append(
                    {
                        'id': len(coco['annotations']) + 1,
                        'image_id': index,
                        'category_id': category_ids[digit],
                        'bbox': box,
                        'area': box[2] * box[3],
                        'iscrowd': 0,
                    }
                )
            if (index + 1) % PROGRESS_IMAGES == 0:
                print(f'{split}: {index + 1} of {count} images', file=sys.stderr, flush=True)
    (folder / f'{split}.json').write_text(json.dumps(coco))


def make_dataset(out: Path, settings: SceneSettings, jobs: int = 1) -> bool:
    """Write the data set to ``out``: ``train/``, ``val/``, ``train.json`` and ``val.json``.

    It is written beside ``out`` and moved there when complete. A data set with the same settings is
    kept, one with other settings is replaced. Its bytes don't depend on ``jobs``, the number of
    processes that draw the images.

    Returns:
        Whether it was written; False if it already existed.

    Raises:
        FileExistsError: ``out`` exists and wasn't made by this function.
    """
    out = Path(out)
    if out.exists():
        written = out / SETTINGS_FILE
        if not written.exists():
            raise FileExistsError(
                f'{out} exists and is no data set of make_dataset.py (it has no {SETTINGS_FILE}): '
                'remove it or choose another folder'
            )
        if json.loads(written.read_text()) == settings.as_json():
            return False
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'.{out.name}.{os.getpid()}.part')
    part.mkdir()
    try:
        for split in SPLITS:
            write_split(part, settings, split, jobs)
        (part / SETTINGS_FILE).write_text(json.dumps(settings.as_json(), indent=2))
        if out.exists():
            shutil.rmtree(out)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def describe(out: Path) -> str:
    """A line for each split: images, objects and the quantiles of their sizes."""
    lines = []
    for split in SPLITS:
        coco = json.loads((out / f'{split}.json').read_text())
        sides = [(a['bbox'][2] * a['bbox'][3]) ** 0.5 for a in coco['annotations']]
        sizes = '–'.join(f'{q:.0f}' for q in np.quantile(sides, [0, 0.5, 1])) if sides else 'none'
        lines.append(
            f'{split}: {len(coco["images"])} images, {len(sides)} objects of '
            f'{len(coco["categories"])} classes, sides {sizes} pixels (least, median, greatest)'
        )
    return '\n'.join(lines)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    default = SceneSettings()
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out', type=Path, help='folder to write to')
    parser.add_argument('--train', type=int, default=default.train, help='training images')
    parser.add_argument('--val', type=int, default=default.val, help='validation images')
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        default=default.size,
        metavar='PIXELS',
        help='side of square images, or height and width',
    )
    parser.add_argument(
        '--objects',
        type=int,
        nargs=2,
        default=default.objects,
        metavar=('LEAST', 'GREATEST'),
        help='objects in an image: 1 3 is sparse, 8 20 a crowd',
    )
    parser.add_argument(
        '--scale',
        type=float,
        nargs=2,
        default=default.scale,
        metavar=('LEAST', 'GREATEST'),
        help="height of objects, as a share of the image's height",
    )
    parser.add_argument(
        '--digits', type=int, nargs='+', default=default.digits, help='digits in use, each a class'
    )
    parser.add_argument('--seed', type=int, default=default.seed)
    parser.add_argument('--jobs', type=int, default=1, help='processes that draw the images')
    return parser.parse_args(argv)


def main() -> None:
    args = vars(parse_args())
    out, jobs = args.pop('out'), args.pop('jobs')
    if len(args['size']) == 1:
        args['size'] *= 2
    try:
        if jobs < 1:
            raise ValueError(f'--jobs must be at least 1, got {jobs}')
        settings = SceneSettings(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}
        )
        written = make_dataset(out, settings, jobs)
    except (ValueError, FileExistsError) as error:
        sys.exit(str(error))
    print(f'{"written to" if written else "already in"} {out}\n{describe(out)}')


if __name__ == '__main__':
    main()
