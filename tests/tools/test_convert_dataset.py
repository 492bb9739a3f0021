import json
import sys

import cv2
import numpy as np
import pytest
import yaml

XML = """<annotation><filename>b.png</filename>
<size><width>60</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><bndbox><xmin>7</xmin><ymin>5</ymin><xmax>16</xmax><ymax>24</ymax></bndbox>
</object></annotation>"""


@pytest.fixture
def convert(load_tool, monkeypatch):
    def convert(*arguments):
        monkeypatch.setattr(sys, 'argv', ['convert_dataset.py', *map(str, arguments)])
        load_tool('convert_dataset.py').main()

    return convert


@pytest.fixture
def folder(tmp_path):
    """Images a and b of 60 x 40 pixels, and empty folders for their objects."""
    for name in ('images', 'objects'):
        (tmp_path / name).mkdir()
    for name in 'ab':
        cv2.imwrite(str(tmp_path / 'images' / f'{name}.png'), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / 'data.yaml').write_text('names: [cat, dog]')
    return tmp_path


def objects(path):
    """Class and box (x, y, w, h) of each object, by image, as COCO's format says it."""
    content = json.loads(path.read_text())
    classes = {category['id']: category['name'] for category in content['categories']}
    found = {image['file_name']: [] for image in content['images']}
    names = {image['id']: image['file_name'] for image in content['images']}
    for each in content['annotations']:
        found[names[each['image_id']]].append((classes[each['category_id']], each['bbox']))
    return found


def test_yolo(convert, folder, capsys):
    pytest.importorskip('supervision')
    # Centre, width and height as fractions of the image.
    (folder / 'objects' / 'b.txt').write_text('1 0.5 0.25 0.2 0.4\n0 0.1 0.5 0.1 0.5\n')
    out = folder / 'new' / 'train.json'
    convert('yolo', folder / 'images', folder / 'objects', folder / 'data.yaml', out)
    (cat, of_cat), (dog, of_dog) = sorted(objects(out)['b.png'])
    assert (cat, dog) == ('cat', 'dog')
    assert of_cat == pytest.approx([3, 10, 6, 20], abs=1e-3)
    assert of_dog == pytest.approx([24, 2, 12, 16], abs=1e-3)
    assert objects(out)['a.png'] == []
    assert '2 images, 2 objects of 2 classes (cat, dog)' in capsys.readouterr().out


def test_voc(convert, folder):
    pytest.importorskip('supervision')
    (folder / 'objects' / 'b.xml').write_text(XML)
    out = folder / 'train.json'
    convert('voc', folder / 'images', folder / 'objects', out)
    ((name, box),) = objects(out)['b.png']
    # VOC counts pixels from 1, and both borders belong to the object.
    assert (name, box) == ('dog', [6, 4, 10, 20])


def test_voc_with_the_classes_of_all_splits(convert, folder):
    pytest.importorskip('supervision')
    (folder / 'objects' / 'a.xml').write_text('<annotation/>')
    images, xmls, out = folder / 'images', folder / 'objects', folder / 'val.json'
    with pytest.raises(SystemExit, match='there is no object; name the classes by --classes'):
        convert('voc', images, xmls, out)
    convert('voc', images, xmls, out, '--classes', 'cat', 'dog')
    assert objects(out) == {'a.png': [], 'b.png': []}
    (xmls / 'b.xml').write_text(XML)
    convert('voc', images, xmls, out, '--classes', 'owl', 'dog', 'cat')
    assert objects(out)['b.png'] == [('dog', [6, 4, 10, 20])]
    categories = json.loads(out.read_text())['categories']
    assert [category['name'] for category in categories] == ['owl', 'dog', 'cat']
    with pytest.raises(SystemExit, match='objects are of the class dog, which --classes lacks'):
        convert('voc', images, xmls, folder / 'new.json', '--classes', 'owl', 'cat')
    assert not (folder / 'new.json').exists()


@pytest.mark.parametrize('numbers', [[1, 2], [0, 2], ['cat', 'dog'], [0, True]])
def test_classes_that_are_not_numbered_from_0_are_refused(convert, folder, numbers):
    (folder / 'objects' / 'b.txt').write_text('1 0.5 0.25 0.2 0.4\n')
    data, out = folder / 'data.yaml', folder / 'o.json'
    data.write_text(yaml.safe_dump(dict(names=dict.fromkeys(numbers, 'a'))))
    with pytest.raises(SystemExit, match=r'data\.yaml numbers its 2 classes .* such as unused_0'):
        convert('yolo', folder / 'images', folder / 'objects', data, out)
    assert not out.exists()


def test_numbers_of_classes_may_come_in_any_order(convert, folder):
    pytest.importorskip('supervision')
    (folder / 'objects' / 'b.txt').write_text('1 0.5 0.25 0.2 0.4\n')
    data, out = folder / 'data.yaml', folder / 'o.json'
    data.write_text('names: {1: dog, 0: cat}')
    convert('yolo', folder / 'images', folder / 'objects', data, out)
    assert objects(out)['b.png'][0][0] == 'dog'


@pytest.mark.parametrize(
    ('kind', 'name', 'damage'),
    [
        ('yolo', 'images/b.png', lambda data: data[:20]),
        ('yolo', 'images/a.png', lambda data: b''),
        ('yolo', 'objects/b.txt', lambda data: b'\xff\xfe'),
        ('yolo', 'data.yaml', lambda data: data[:-1]),
        ('voc', 'images/b.png', lambda data: data[:20]),
        ('voc', 'objects/b.xml', lambda data: data[:60]),
        ('voc', 'objects/b.xml', lambda data: data.replace(b'bndbox', b'box')),
    ],
)
def test_a_damaged_file_is_named(convert, folder, kind, name, damage):
    pytest.importorskip('supervision')
    (folder / 'objects' / 'b.txt').write_text('1 0.5 0.25 0.2 0.4\n')
    (folder / 'objects' / 'b.xml').write_text(XML)
    path, out = folder / name, folder / 'o.json'
    path.write_bytes(damage(path.read_bytes()))
    data = [folder / 'data.yaml'] if kind == 'yolo' else []
    with pytest.raises(SystemExit, match=rf'^{path} (was not converted|is not YAML): .'):
        convert(kind, folder / 'images', folder / 'objects', *data, out)
    assert not out.exists()


def test_files_that_are_left_out_are_named(convert, folder, capsys):
    pytest.importorskip('supervision')
    (folder / 'images' / 'more').mkdir()
    (folder / 'images' / 'b.png').rename(folder / 'images' / 'more' / 'b.png')
    for name in ('a', 'b', 'classes'):
        (folder / 'objects' / f'{name}.txt').touch()
    convert('yolo', folder / 'images', folder / 'objects', folder / 'data.yaml', folder / 'o.json')
    warned = capsys.readouterr().err
    assert f'1 images in subfolders of {folder}/images are left out ({folder}' in warned
    assert f'1 of 3 files in {folder}/objects have the name of no image' in warned
    assert '(b.txt)' in warned


def test_what_is_missing_is_named(convert, folder, capsys):
    for objects, classes, message in (
        ('labels', 'data.yaml', 'there is no folder'),
        ('objects', 'other.yaml', 'there is no file'),
        ('objects', 'data.yaml', 'has no .txt file'),
    ):
        with pytest.raises(SystemExit):
            convert(
                'yolo', folder / 'images', folder / objects, folder / classes, folder / 'out.json'
            )
        assert message in capsys.readouterr().err


def test_a_line_that_is_no_object_is_named(convert, folder):
    pytest.importorskip('supervision')
    (folder / 'objects' / 'b.txt').write_text('1 0.5 0.25\n')
    with pytest.raises(SystemExit, match=r'b\.txt'):
        convert(
            'yolo', folder / 'images', folder / 'objects', folder / 'data.yaml', folder / 'o.json'
        )
    assert not (folder / 'o.json').exists()
