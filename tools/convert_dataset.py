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
from pathlib import Path
from typing import TYPE_CHECKING

from deim_mmdet.utils.files import replaced_when_complete
from deim_mmdet.utils.text import some

import numpy as np
import yaml

if TYPE_CHECKING:
    from supervision import DetectionDataset


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
    suffix = {'yolo': '.txt', 'voc': '.xml'}[args.format]
    if not any(args.objects.glob(f'*{suffix}')):
        parser.error(f'{args.objects} has no {suffix} file')
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
    except ValueError as error:
        raise SystemExit(f'{args.objects} was not converted: {error}') from None
    if not len(dataset):
        raise SystemExit(f'{args.images} has no image')
    with replaced_when_complete(args.out) as path:
        dataset.as_coco(annotations_path=str(path))
        content = json.loads(path.read_text())
    names = ', '.join(category['name'] for category in content['categories'])
    print(
        f'{args.out}: {len(content["images"])} images, {len(content["annotations"])} objects of '
        f'{len(content["categories"])} classes ({names})'
    )


if __name__ == '__main__':
    main()
