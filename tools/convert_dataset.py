"""Write the annotations of a data set in YOLO's or Pascal VOC's format in COCO's format.

    python tools/convert_dataset.py yolo IMAGES LABELS data.yaml OUT.json
    python tools/convert_dataset.py voc IMAGES XMLS OUT.json --classes CAT DOG

IMAGES is the folder of the images, LABELS or XMLS the folder with one file of objects for each
image. An image without such a file has no objects. --list names a file with the images of one
split, such as ImageSets/Main/train.txt of VOC or train.txt of YOLO; else all images of the folder
are taken. --classes names the classes of all splits in their order: without it, they are those that
the folder has. The library supervision reads both formats: ``pip install supervision``.
"""

import argparse
import json
import math
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from deim_mmdet.utils.files import replaced_when_complete
from deim_mmdet.utils.text import some

import numpy as np
import yaml
from PIL import Image

if TYPE_CHECKING:
    from supervision import DetectionDataset

PATTERNS = dict(yolo='*.txt', voc='*.xml')
# Files that supervision takes for images.
PICTURES = ('.bmp', '.dng', '.jpg', '.jpeg', '.mpo', '.png', '.tif', '.tiff', '.webp')
# Up to which a share of a side may be inaccurate; a pixel's number rarely is as small.
MOST = 2.0
BORDERS = ('xmin', 'ymin', 'xmax', 'ymax')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    formats = parser.add_subparsers(dest='format', required=True)
    for name, files in (('yolo', 'labels, .txt files'), ('voc', 'annotations, .xml files')):
        one = formats.add_parser(name)
        one.add_argument('images', type=Path, help='folder of the images')
        one.add_argument('objects', type=Path, help=f'folder of the {files}')
        if name == 'yolo':
            one.add_argument('data', type=Path, help='data.yaml, with the names of the classes')
        else:
            one.add_argument('--classes', nargs='+', help='names of all classes, in their order')
        one.add_argument('out', type=Path, help='annotation file to write')
        one.add_argument('--list', type=Path, help='file that names the images, one a line')
    args = parser.parse_args()
    for folder in (args.images, args.objects):
        if not folder.is_dir():
            parser.error(f'there is no folder {folder}')
    for file in (args.list, getattr(args, 'data', None)):
        if file is not None and not file.is_file():
            parser.error(f'there is no file {file}')
    if args.format == 'yolo':
        check_numbers(args.data)
    if not any(args.objects.glob(PATTERNS[args.format])):
        parser.error(f'{args.objects} has no {PATTERNS[args.format][1:]} file')
    return args


def check_numbers(data: Path) -> None:
    """Check that the classes of a data.yaml are numbered as label files number them, from 0.

    supervision sorts the numbers and drops them: with a gap, boxes would get wrong classes.

    Raises:
        SystemExit: They aren't, or the file is not YAML.
    """
    try:
        content = yaml.safe_load(data.read_text('utf-8'))
    except (ValueError, yaml.YAMLError) as error:
        raise SystemExit(f'{data} is not YAML: {error}') from None
    names = content.get('names') if isinstance(content, dict) else None
    if not isinstance(names, dict):
        return
    if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        raise SystemExit(
            f'{data} numbers its {len(names)} classes {some(names)}, not from 0 without gaps: give '
            'each number that is missing a name, such as unused_0'
        )


def faulty_file(args: argparse.Namespace) -> Path | None:
    """The first image or file of objects that can't be read; None where all can.

    The errors of supervision often don't say it.
    """
    for path in sorted([*args.images.iterdir(), *args.objects.glob(PATTERNS[args.format])]):
        try:
            if path.suffix.lower() in PICTURES:
                with Image.open(path) as image:
                    image.getexif()
            elif path.suffix == '.txt':
                path.read_text('utf-8')
            elif path.suffix == '.xml':
                for each in ElementTree.parse(path).iterfind('object'):
                    borders = [float(each.find('bndbox').findtext(side)) for side in BORDERS]
                    if not each.findtext('name') or not all(map(math.isfinite, borders)):
                        return path
        except Exception:  # each reader has its own kinds of errors
            return path
    return None


def warn_of_files_left_out(args: argparse.Namespace, images: list[str]) -> None:
    """Print which images and files of objects are not used, as nothing else says it."""
    below = [path for path in args.images.glob('*/**/*') if path.suffix.lower() in PICTURES]
    if below:
        print(
            f'warning: {len(below)} images in subfolders of {args.images} are left out '
            f'({some(below, 2)}): convert each folder by itself',
            file=sys.stderr,
        )
    counts = Counter(Path(image).stem for image in images)
    shared = [stem for stem, count in counts.items() if count > 1]
    if shared:
        print(
            f'warning: {len(shared)} files of objects count for two images or more, which differ '
            f'in the suffix alone ({some(shared, 2)})',
            file=sys.stderr,
        )
    stems = {*counts, 'classes'}
    objects = [path.name for path in sorted(args.objects.glob(PATTERNS[args.format]))]
    unused = [name for name in objects if Path(name).stem not in stems]
    if unused:
        print(
            f'warning: {len(unused)} of {len(objects)} files in {args.objects} have the name of no '
            f'image in {args.images} ({some(unused, 2)})',
            file=sys.stderr,
        )


def listed(path: Path, images: list[str]) -> list[str]:
    """The images that a file names, by path, by name or by name without suffix.

    Raises:
        ValueError: It names an image that isn't there, two of one name, or none.
    """
    lines = {line.strip() for line in path.read_text('utf-8').splitlines()} - {''}
    # Paths may be of another machine, also of Windows.
    names = Counter(line.replace('\\', '/').split('/')[-1] for line in lines)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise ValueError(f'{path} names {some(repeated)} in two folders: convert each by itself')
    found = [image for image in images if names.keys() & {Path(image).name, Path(image).stem}]
    unknown = names.keys() - {name for i in found for name in (Path(i).name, Path(i).stem)}
    if unknown or not found:
        missing = some(sorted(unknown)) or 'no image'
        raise ValueError(f'{path} names {missing}: it must name images of the folder, one a line')
    return found


def write_boxes(args: argparse.Namespace, folder: str) -> None:
    """Write YOLO's files of objects to a folder, with boxes in place of polygons.

    supervision would keep a mask of the image's size for every polygon until all files are read.

    Args:
        args: The command's arguments.
        folder: The folder to write to.

    Raises:
        ValueError: A number lies far beyond the border of its image: supervision would take pixels
            for shares of its sides.
    """
    # With keypoints, lines of many numbers are no polygons.
    has_polygons = 'kpt_shape' not in (yaml.safe_load(args.data.read_text('utf-8')) or {})
    stems = {path.stem for path in args.images.iterdir()}
    for path in sorted(args.objects.glob(PATTERNS['yolo'])):
        if path.stem not in stems:
            continue
        lines = []
        for line in path.read_text('utf-8').splitlines():
            label, *numbers = line.split() or ['']
            # A fifth number after those of a box is a score, or counts tracks.
            is_polygon = has_polygons and len(numbers) > 5 and len(numbers) % 2 == 0
            try:
                shares = np.array(numbers if is_polygon else numbers[:4], float)
            except ValueError as error:
                raise ValueError(f'{path.name} has "{line.strip()}": {error}') from None
            if (shares > MOST).any():
                raise ValueError(
                    f'{path.name} has "{line.strip()}", but numbers of the YOLO format are shares '
                    "of the image's width and height, from 0 to 1: divide pixels by them"
                )
            if is_polygon:
                corners = shares.reshape(-1, 2)
                low, high = corners.min(axis=0), corners.max(axis=0)
                line = ' '.join(map(str, (label, *(low + high) / 2, *(high - low))))
            lines.append(f'{line}\n')
        (Path(folder) / path.name).write_text(''.join(lines), 'utf-8')


def set_classes(dataset: 'DetectionDataset', classes: list[str] | None) -> None:
    """Give a data set the classes of all splits; it has those of its own objects.

    Raises:
        ValueError: An object is of another class, or nothing says which classes there are.
    """
    if classes is None:
        if not dataset.classes:
            raise ValueError('there is no object; name the classes by --classes')
        return
    unknown = sorted(set(dataset.classes) - set(classes))
    if unknown:
        raise ValueError(f'objects are of the class {some(unknown)}, which --classes lacks')
    numbers = np.array([classes.index(name) for name in dataset.classes], int)
    for objects in dataset.annotations.values():
        objects.class_id = numbers[objects.class_id]
    dataset.classes = classes


def annotated_size(root: ElementTree.Element, image: Path, read: list[int]) -> list[int]:
    """Width and height that the boxes of a VOC file belong to.

    It is the size in the file: where the image was resized later, or is turned by its EXIF
    orientation and was annotated unturned, nothing else says so. The image's own size holds where
    the file has none, or has width and height exchanged without such a turn.

    Args:
        root: Content of the file.
        image: The image.
        read: Width and height of the image as it is read.
    """
    size = [int(float(root.findtext(f'size/{side}') or 0)) for side in ('width', 'height')]
    if min(size) <= 0:
        return read
    if size == read[::-1]:
        with Image.open(image) as stored:
            return list(stored.size)
    return size


def take_from_xmls(content: dict, args: argparse.Namespace) -> None:
    """Take sizes of images and difficult objects from VOC's files, which supervision passes over.

    What is marked difficult becomes a crowd: it is neither trained on nor counted in evaluation.

    Args:
        content: Annotations in COCO's format, changed in place.
        args: The command's arguments.
    """
    objects = defaultdict(list)
    for annotation in content['annotations']:
        objects[annotation['image_id']].append(annotation)
    differing, difficult = [], 0
    for image in content['images']:
        path = args.objects / f'{Path(image["file_name"]).stem}.xml'
        if not path.exists():
            continue
        root = ElementTree.parse(path).getroot()
        read = [image['width'], image['height']]
        size = annotated_size(root, args.images / image['file_name'], read)
        if size != read:
            image['width'], image['height'] = size
            differing.append(path)
        for annotation, each in zip(objects[image['id']], root.iterfind('object'), strict=True):
            if (each.findtext('difficult') or '').strip() == '1':
                annotation['iscrowd'] = 1
                difficult += 1
    if differing:
        print(
            f'warning: {len(differing)} files say another size than their image has '
            f'({some(differing, 2)}): their size is taken, as their boxes belong to it. '
            'tools/check_dataset.py --images says what follows',
            file=sys.stderr,
        )
    if difficult:
        print(f'{difficult} objects are marked difficult: they are not trained on, nor counted')


def main() -> None:
    args = parse_args()
    try:
        from supervision import DetectionDataset
    except ImportError as error:
        raise SystemExit(f'{error}: pip install supervision') from None
    try:
        if args.format == 'yolo':
            with tempfile.TemporaryDirectory() as folder:
                write_boxes(args, folder)
                dataset = DetectionDataset.from_yolo(
                    str(args.images), folder, str(args.data), show_progress=True
                )
        else:
            dataset = DetectionDataset.from_pascal_voc(
                str(args.images), str(args.objects), show_progress=True
            )
            set_classes(dataset, args.classes)
        warn_of_files_left_out(args, dataset.image_paths)
        if args.list is not None:
            dataset.image_paths = listed(args.list, dataset.image_paths)
        if not len(dataset):
            raise ValueError(f'there is no image in {args.images}')
        for objects in dataset.annotations.values():
            # VOC's may have some; supervision would write those of several parts as crowds.
            objects.mask = None
        with replaced_when_complete(args.out) as path:
            dataset.as_coco(annotations_path=str(path))
            content = json.loads(path.read_text())
            if args.format == 'voc':
                take_from_xmls(content, args)
                path.write_text(json.dumps(content))
    except Exception as error:  # each reader of a file has its own kinds of errors
        place = faulty_file(args) or args.objects
        raise SystemExit(f'{place} was not converted: {error}') from None
    names = ', '.join(category['name'] for category in content['categories'])
    suffix = PATTERNS[args.format][1:]
    without = [
        image['file_name']
        for image in content['images']
        if not (args.objects / Path(image['file_name']).with_suffix(suffix)).exists()
    ]
    print(
        f'{args.out}: {len(content["images"])} images, {len(content["annotations"])} objects of '
        f'{len(content["categories"])} classes ({names}); {len(without)} images without a '
        f'{suffix} file'
    )


if __name__ == '__main__':
    main()
