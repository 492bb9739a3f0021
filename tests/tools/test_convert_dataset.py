import json
import sys
import tracemalloc

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

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


def test_polygons_become_boxes_to_train_on(convert, folder):
    """Also those of two parts, which a bridge joins, and of parts that touch at a corner."""
    pytest.importorskip('supervision')
    bridged = '.1 .1 .2 .1 .2 .2 .8 .8 .9 .8 .9 .9 .8 .9 .8 .8 .2 .2 .1 .2'
    (folder / 'objects' / 'b.txt').write_text(f'0 {bridged}\n1 0.5 0.25 0.2 0.4\n')
    out = folder / 'train.json'
    convert('yolo', folder / 'images', folder / 'objects', folder / 'data.yaml', out)
    (_, of_cat), (_, of_dog) = objects(out)['b.png']
    assert of_cat == pytest.approx([6, 4, 48, 32], abs=1e-3)
    assert of_dog == pytest.approx([24, 2, 12, 16], abs=1e-3)
    annotations = json.loads(out.read_text())['annotations']
    assert [each['iscrowd'] for each in annotations] == [0, 0]
    assert [each['area'] for each in annotations] == pytest.approx([48 * 32, 12 * 16], abs=0.1)


def test_polygons_take_no_memory_of_the_images_size(convert, folder):
    pytest.importorskip('supervision')
    Image.new('L', (4000, 3000)).save(folder / 'images' / 'b.png')
    polygon = '0 .1 .1 .9 .1 .9 .9 .1 .9\n'
    (folder / 'objects' / 'b.txt').write_text(100 * polygon)
    out = folder / 'train.json'
    tracemalloc.start()
    convert('yolo', folder / 'images', folder / 'objects', folder / 'data.yaml', out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(objects(out)['b.png']) == 100
    # As masks they take 1.2 GB.
    assert peak < 1e8


@pytest.mark.parametrize('line', ['b', 'b.png', '/other/machine/b.png', 'C:\\sets\\b.png'])
def test_a_list_chooses_the_images(convert, folder, line, capsys):
    pytest.importorskip('supervision')
    for name in 'ab':
        (folder / 'objects' / f'{name}.txt').write_text('1 0.5 0.25 0.2 0.4\n')
    split, out = folder / 'split.txt', folder / 'o.json'
    arguments = ['yolo', folder / 'images', folder / 'objects', folder / 'data.yaml', out]
    split.write_text(f'{line}\n\n')
    convert(*arguments, '--list', split)
    assert list(objects(out)) == ['b.png']
    assert 'warning' not in capsys.readouterr().err
    for text, message in (
        (f'{line}\nc\nd\n', 'names c, d: it must name images'),
        ('\n', 'names no image: it must name images'),
        (f'{line}\nmore/b.png\nother/b.png\n', 'names b.png in two folders'),
    ):
        split.write_text(text)
        with pytest.raises(SystemExit, match=f'split.txt {message}'):
            convert(*arguments, '--list', split)


def test_voc_lists_give_the_splits_of_one_folder_the_same_classes(convert, folder):
    pytest.importorskip('supervision')
    classes = dict(a='dog', b='cat')
    for name, of_class in classes.items():
        (folder / 'objects' / f'{name}.xml').write_text(XML.replace('dog', of_class))
    for name, of_class in classes.items():
        (folder / f'{name}.txt').write_text(name)
        out = folder / f'{name}.json'
        convert('voc', folder / 'images', folder / 'objects', out, '--list', folder / f'{name}.txt')
        assert [each[0] for each in objects(out)[f'{name}.png']] == [of_class]
    contents = [json.loads((folder / f'{name}.json').read_text()) for name in 'ab']
    assert contents[0]['categories'] == contents[1]['categories']
    assert {each['name'] for each in contents[0]['categories']} == {'cat', 'dog'}


@pytest.mark.parametrize(
    ('size', 'turned', 'expected'),
    [
        ((60, 40), True, (60, 40)),  # annotated as it is stored, read as viewers turn it
        ((40, 60), True, (40, 60)),
        ((40, 60), False, (60, 40)),  # a mistake in the file
        ((120, 80), False, (120, 80)),  # resized after it was annotated
        ((0, 40), False, (60, 40)),
    ],
)
def test_voc_boxes_keep_the_size_they_belong_to(convert, folder, capsys, size, turned, expected):
    pytest.importorskip('supervision')
    if turned:
        orientation = Image.Exif()
        orientation[0x0112] = 6
        Image.new('RGB', (60, 40)).save(folder / 'images' / 'b.png', exif=orientation)
    width, height = size
    text = XML.replace('<width>60', f'<width>{width}').replace('<height>40', f'<height>{height}')
    (folder / 'objects' / 'b.xml').write_text(text)
    out = folder / 'o.json'
    convert('voc', folder / 'images', folder / 'objects', out)
    (image,) = (i for i in json.loads(out.read_text())['images'] if i['file_name'] == 'b.png')
    assert (image['width'], image['height']) == expected
    warns = expected != ((40, 60) if turned else (60, 40))
    assert ('1 files say another size' in capsys.readouterr().err) == warns
    assert objects(out)['b.png'] == [('dog', [6, 4, 10, 20])]


def test_voc_difficult_objects_are_not_trained_on(convert, folder, capsys):
    pytest.importorskip('supervision')
    head, one, tail = XML.partition(XML[XML.index('<object>') : XML.index('</annotation>')])
    marks = ('<difficult>1</difficult>', '', '<difficult>0</difficult>')
    several = ''.join(one.replace('<bndbox>', f'{mark}<bndbox>') for mark in marks)
    (folder / 'objects' / 'b.xml').write_text(head + several + tail)
    out = folder / 'o.json'
    convert('voc', folder / 'images', folder / 'objects', out)
    assert [each['iscrowd'] for each in json.loads(out.read_text())['annotations']] == [1, 0, 0]
    said = capsys.readouterr().out
    assert '1 objects are marked difficult' in said
    assert '; 1 images without a .xml file' in said


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
        ('voc', 'objects/b.xml', lambda data: data.replace(b'<name>dog</name>', b'')),
        ('voc', 'objects/b.xml', lambda data: data.replace(b'>7<', b'>nan<')),
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
    cv2.imwrite(str(folder / 'images' / 'a.jpg'), np.zeros((40, 60, 3), np.uint8))
    convert('yolo', folder / 'images', folder / 'objects', folder / 'data.yaml', folder / 'o.json')
    assert '1 files of objects count for two images or more' in capsys.readouterr().err


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


@pytest.mark.parametrize('line', ['1 30 10 12 16', '1 0.1 0.1 50 0.1 50 30 10 30'])
def test_pixels_in_yolos_format_are_refused(convert, folder, line):
    """supervision takes them for shares: boxes would lie beyond the image."""
    pytest.importorskip('supervision')
    path = folder / 'objects' / 'b.txt'
    path.write_text(f'0 0.5 0.5 1 1 7\n\n{line}\n')
    rest = folder / 'images', folder / 'objects', folder / 'data.yaml', folder / 'o.json'
    with pytest.raises(SystemExit, match=f'b.txt has "{line}", but numbers .*: divide pixels'):
        convert('yolo', *rest)
    assert not (folder / 'o.json').exists()
    # The number of a track, after a box that goes a little beyond the border.
    path.write_text('0 0.5 0.5 1.01 1 7\n')
    convert('yolo', *rest)
    assert len(objects(folder / 'o.json')['b.png']) == 1
