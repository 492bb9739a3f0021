"""Write the annotations of a data set in YOLO's or Pascal VOC's format in COCO's format.

    python tools/convert_dataset.py yolo IMAGES LABELS data.yaml OUT.json
    python tools/convert_dataset.py voc IMAGES XMLS OUT.json --classes CAT DOG

IMAGES is the folder of the images, LABELS or XMLS the folder with one file of objects for each
image. An image without such a file has no objects. --classes names the classes of all splits in
their order: without it, they are those that this split has. The library supervision reads both
formats: ``pip install supervision``.
"""

import argparse
import json
import sys
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
    args = parser.parse_args()
    for folder in (args.images, args.objects):
        if not folder.is_dir():
            parser.error(f'there is no folder {folder}')
    if args.format == 'yolo' and not args.data.is_file():
        parser.error(f'there is no file {args.data}')
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
                for each in ElementTree.parse(path).iter('object'):
                    [float(each.find('bndbox').findtext(side)) for side in BORDERS]
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
    stems = {Path(image).stem for image in images} | {'classes'}
    objects = [path.name for path in sorted(args.objects.glob(PATTERNS[args.format]))]
    unused = [name for name in objects if Path(name).stem not in stems]
    if unused:
        print(
            f'warning: {len(unused)} of {len(objects)} files in {args.objects} have the name of no '
            f'image in {args.images} ({some(unused, 2)})',
            file=sys.stderr,
        )


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


def main() -> None:
    args = parse_args()
    try:
        from supervision import DetectionDataset
    except ImportError as error:
        raise SystemExit(f'{error}: pip install supervision') from None
    folders = dict(
        images_directory_path=str(args.images), annotations_directory_path=str(args.objects)
    )
    try:
        if args.format == 'yolo':
            dataset = DetectionDataset.from_yolo(
                **folders, data_yaml_path=str(args.data), show_progress=True
            )
        else:
            dataset = DetectionDataset.from_pascal_voc(**folders, show_progress=True)
            set_classes(dataset, args.classes)
        warn_of_files_left_out(args, dataset.image_paths)
        if not len(dataset):
            raise ValueError(f'there is no image in {args.images}')
        with replaced_when_complete(args.out) as path:
            dataset.as_coco(annotations_path=str(path))
            content = json.loads(path.read_text())
    except Exception as error:  # each reader of a file has its own kinds of errors
        place = faulty_file(args) or args.objects
        raise SystemExit(f'{place} was not converted: {error}') from None
    names = ', '.join(category['name'] for category in content['categories'])
    print(
        f'{args.out}: {len(content["images"])} images, {len(content["annotations"])} objects of '
        f'{len(content["categories"])} classes ({names})'
    )


if __name__ == '__main__':
    main()
