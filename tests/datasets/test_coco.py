import itertools
import json
import pickle

from deim_mmdet.datasets import CheckedCocoDataset

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.logging import MMLogger


@pytest.fixture
def edit(make_coco):
    """Function (change, **options) -> the data set after ``change(content)`` of its file."""

    def edit(change=None, **options):
        root = make_coco([(40, 60), (50, 70)], [[(5, 5, 20, 10), (1, 2, 30, 30)], [(0, 0, 9, 9)]])
        path = root / 'ann.json'
        content = json.loads(path.read_text())
        if change is not None:
            content = change(content) or content
        path.write_text(json.dumps(content))
        return CheckedCocoDataset(
            data_root=str(root), ann_file='ann.json', data_prefix={'img': ''}, **options
        )

    return edit


@pytest.fixture
def warnings(monkeypatch):
    """What is logged through mmengine's current logger at level warning."""
    messages = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'callHandlers', lambda record: messages.append(record))
    return messages


def boxes_of(dataset):
    return [[i['bbox'] for i in dataset.get_data_info(n)['instances']] for n in range(len(dataset))]


def labels_of(dataset):
    return [
        [i['bbox_label'] for i in dataset.get_data_info(n)['instances']]
        for n in range(len(dataset))
    ]


def test_good_file_reads_as_with_mmdet(edit, tmp_path):
    ours = edit()
    theirs = CocoDataset(
        data_root=str(tmp_path),
        ann_file='ann.json',
        data_prefix={'img': ''},
        metainfo={'classes': ('cat', 'dog')},
    )
    assert [ours.get_data_info(n) for n in range(2)] == [theirs.get_data_info(n) for n in range(2)]
    assert ours.cat_ids == theirs.cat_ids == [3, 7]
    assert dict(ours.cat_img_map) == {k: v for k, v in theirs.cat_img_map.items() if v}


def test_classes_come_from_the_file_unless_given(edit):
    assert edit().metainfo['classes'] == ('cat', 'dog')
    assert edit(metainfo={'classes': ['cat', 'dog']}).metainfo['classes'] == ('cat', 'dog')
    dogs = edit(metainfo={'classes': ('dog',)})
    assert dogs.metainfo['classes'] == ('dog',)
    assert labels_of(dogs) == [[0], []]


@pytest.mark.parametrize('ids', [(0, 1), (1, 2), (3, 7), (90, 13)])
def test_category_ids_from_zero_one_or_with_gaps(edit, ids):
    def change(content):
        new = dict(zip((3, 7), ids, strict=True))
        for category in content['categories']:
            category['id'] = new[category['id']]
        for annotation in content['annotations']:
            annotation['category_id'] = new[annotation['category_id']]

    dataset = edit(change)
    assert labels_of(dataset) == [[0, 1], [0]]
    # mmdet's metric turns labels back into the same ids.
    metric = CocoMetric(ann_file=dataset.ann_file)
    metric.dataset_meta = dataset.metainfo
    assert metric._coco_api.get_cat_ids(cat_names=dataset.metainfo['classes']) == dataset.cat_ids


def test_bad_boxes_are_dropped_and_counted_in_one_warning(edit, warnings):
    bad = [
        ([5, 5, 0, 10], 0),
        ([5, 5, 10, -3], -30),
        ([float('nan'), 5, 4, 4], 16),
        ([60, 5, 10, 10], 100),
        ([5, -20, 10, 20], 200),
        ([5, 5, 0.5, 30], 15),
        ([5, 5, 10, 10], 0),
    ]

    def change(content):
        for bbox, area in bad:
            content['annotations'].append(
                {
                    'id': len(content['annotations']),
                    'image_id': 0,
                    'category_id': 3,
                    'bbox': bbox,
                    'area': area,
                    'iscrowd': 0,
                }
            )
        content['annotations'][2]['bbox'] = [0, 0, 0, 0]

    dataset = edit(change)
    assert boxes_of(dataset) == [[[5, 5, 25, 15], [1, 2, 31, 32]], []]
    assert len(warnings) == 1
    assert warnings[0].levelname == 'WARNING'
    message = warnings[0].getMessage()
    assert 'dropped 8 of 10 boxes' in message
    assert '4 without area (1.png, 0.png)' in message
    assert '1 with a coordinate that is not finite (0.png)' in message
    assert '2 outside the image (0.png)' in message
    assert '1 thinner than one pixel (0.png)' in message


def test_good_file_is_silent(edit, warnings):
    edit()
    assert warnings == []


def test_partly_outside_boxes_stay(edit, warnings):
    def change(content):
        content['annotations'][0]['bbox'] = [-10, -10, 15, 15]

    assert boxes_of(edit(change))[0][0] == [-10, -10, 5, 5]
    assert warnings == []


def test_images_without_objects_are_kept_unless_filtered(edit):
    def change(content):
        content['annotations'][2]['bbox'] = [0, 0, 0, 9]

    assert len(edit(change, filter_cfg={'filter_empty_gt': False})) == 2
    assert len(edit(change)) == 2
    assert len(edit(change, filter_cfg={'filter_empty_gt': True})) == 1
    with pytest.raises(
        ValueError, match=r"ann\.json: filter_cfg={'min_size': 51} keeps none of its 2"
    ):
        edit(change, filter_cfg={'min_size': 51})


def test_area_is_optional_for_training_but_not_for_evaluation(edit):
    def change(content):
        for annotation in content['annotations']:
            del annotation['area'], annotation['iscrowd']

    assert boxes_of(edit(change))[1] == [[0, 0, 9, 9]]
    with pytest.raises(ValueError, match='lacks area, iscrowd in entry 0 of "annotations"'):
        edit(change, test_mode=True)


def test_test_images_need_no_annotations(edit):
    dataset = edit(lambda content: content.pop('annotations') and None, test_mode=True)
    assert boxes_of(dataset) == [[], []]


def replace(name, number, /, **fields):
    return lambda content: content[name][number].update(fields)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda content: [1, 2], 'holds a list, not an object.*COCO format is'),
        (lambda content: content.pop('images') and None, 'has no list "images"'),
        (lambda content: content.pop('annotations') and None, 'has no list "annotations"'),
        (lambda content: content.update(categories={}), 'has no list "categories"'),
        (
            lambda content: content['images'][1].pop('height') and None,
            r'lacks height in entry 1 of "images".*1\.png',
        ),
        (
            lambda content: content['annotations'][1].pop('bbox') and None,
            'lacks bbox in entry 1 of "annotations"',
        ),
        (
            replace('annotations', 1, bbox=[1, 2, 3]),
            r'entry 1 of "annotations" with bbox \[1, 2, 3\]\. It must be \[x, y',
        ),
        (replace('annotations', 1, bbox=None), 'entry 1 of "annotations" with bbox None'),
        (replace('annotations', 1, bbox=[1, 2, 3, 10**400]), 'entry 1 of "annotations" with bbox'),
        (replace('images', 1, id=0), 'entries of "images" with the same id.*: 0'),
        (replace('images', 1, width=0), 'entry 1 of "images" with width 0. It must be a number'),
        (replace('images', 1, height='50'), 'entry 1 of "images" with height \'50\''),
        (replace('images', 1, file_name='\ud800'), r'entry 1 of "images" with file_name'),
        (replace('annotations', 1, id=None), 'entry 1 of "annotations" with id None'),
        (replace('annotations', 1, area='1'), "with area '1'. It must be a number"),
        (replace('annotations', 1, iscrowd='0'), "with iscrowd '0'. It must be 0 or 1"),
        (replace('categories', 1, name=None), 'entry 1 of "categories" with name None'),
        (replace('categories', 1, id=3), 'entries of "categories" with the same id: 3'),
        (
            replace('categories', 1, name='cat'),
            'entries of "categories" with the same name: \'cat\'',
        ),
    ],
)
def test_each_fault_of_the_file_is_named(edit, tmp_path, change, message):
    with pytest.raises(ValueError, match=f'(?s)Annotation file .*ann\\.json.*{message}'):
        edit(change)


def test_classes_that_do_not_fit_the_file_are_named(edit):
    with pytest.raises(ValueError, match=r"no category 'bird'.*categories are 'cat', 'dog'"):
        edit(metainfo={'classes': ('cat', 'bird')})
    with pytest.raises(ValueError, match=r"'cat' is 2 times in metainfo classes"):
        edit(metainfo={'classes': ('cat', 'cat')})


def names_of(dataset):
    """Class names of all objects, image by image."""
    classes = dataset.metainfo['classes']
    return [[classes[label] for label in labels] for labels in labels_of(dataset)]


def test_a_string_is_no_list_of_classes(edit):
    with pytest.raises(ValueError, match=r"classes is a string: write \('cat',\)\. "):
        edit(metainfo={'classes': 'cat'})


@pytest.mark.parametrize('reverse_file', [False, True])
@pytest.mark.parametrize('classes', [('cat', 'dog'), ('dog', 'cat')])
def test_labels_follow_the_given_names_in_any_order(edit, classes, reverse_file):
    def change(content):
        if reverse_file:
            content['categories'].reverse()

    dataset = edit(change, metainfo={'classes': classes})
    assert dataset.metainfo['classes'] == classes
    assert names_of(dataset) == [['cat', 'dog'], ['cat']]
    assert dataset.cat_ids == [{'cat': 3, 'dog': 7}[name] for name in classes]


def test_classes_can_be_renumbered_any_number_of_times(edit):
    dataset = edit()
    for classes in (('dog', 'cat'), ('cat', 'dog'), ('dog', 'cat'), ('dog', 'cat')):
        dataset.set_class_order(classes)
        assert dataset.metainfo['classes'] == classes
        assert names_of(dataset) == [['cat', 'dog'], ['cat']]
        assert [dataset.cat2label[id] for id in dataset.cat_ids] == [0, 1]
        # What a worker gets is the same.
        assert names_of(pickle.loads(pickle.dumps(dataset))) == names_of(dataset)
    with pytest.raises(ValueError, match=r"\['dog', 'cat'\], not \['dog', 'cow'\]"):
        dataset.set_class_order(('dog', 'cow'))


@pytest.mark.parametrize('order', itertools.permutations(range(4)))
def test_renumbering_of_four_classes(tmp_path, order):
    """Of more than two classes a permutation and its inverse differ."""
    names = 'abcd'
    content = {
        'images': [{'id': 0, 'file_name': '0.png', 'width': 9, 'height': 9}],
        'annotations': [
            {'id': n + 1, 'image_id': 0, 'category_id': n, 'bbox': [n, 0, 2, 2], 'iscrowd': 0}
            for n in range(4)
        ],
        'categories': [{'id': n, 'name': name} for n, name in enumerate(names)],
    }
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    dataset = CheckedCocoDataset(
        data_root=str(tmp_path), ann_file='ann.json', data_prefix={'img': ''}
    )
    for shuffled in (order, reversed(order), order[1:] + order[:1]):
        dataset.set_class_order([names[n] for n in shuffled])
        assert names_of(dataset) == [[*names]]


@pytest.mark.parametrize('field', ['image_id', 'category_id'])
def test_boxes_of_unknown_images_and_categories_are_dropped(edit, warnings, field):
    dataset = edit(replace('annotations', 1, **{field: 99}))
    assert boxes_of(dataset) == [[[5, 5, 25, 15]], [[0, 0, 9, 9]]]
    message = warnings[0].getMessage()
    assert f'dropped 1 of 3 boxes: 1 whose {field} is not in' in message


def test_annotation_ids_matter_to_evaluation_alone(edit):
    change = replace('annotations', 1, id=0)
    assert boxes_of(edit(change)) == boxes_of(edit())
    with pytest.raises(ValueError, match=r'entries of "annotations" with the same id: 0\. Give'):
        edit(change, test_mode=True)
    with pytest.raises(ValueError, match=r"id 'a'\. It must be an integer"):
        edit(replace('annotations', 1, id='a'), test_mode=True)


@pytest.mark.parametrize(('number', 'expected'), [(1, 1.0), (0, 0.0)])
def test_evaluation_never_finds_an_annotation_with_id_zero(edit, number, expected):
    def change(content):
        content['images'] = content['images'][:1]
        content['annotations'] = [{**content['annotations'][0], 'id': number}]

    dataset = edit(change, test_mode=True)
    metric = CocoMetric(ann_file=dataset.ann_file)
    metric.dataset_meta = dataset.metainfo
    found = dict(
        bboxes=torch.tensor([[5.0, 5, 25, 15]]), scores=torch.ones(1), labels=torch.tensor([0])
    )
    metric.process({}, [dict(img_id=0, ori_shape=(40, 60), pred_instances=found)])
    assert metric.evaluate(1)['coco/bbox_mAP'] == expected


def test_an_image_that_is_there_twice_counts_once(edit):
    dataset = edit(lambda content: content['images'].append(dict(content['images'][0])))
    assert boxes_of(dataset) == boxes_of(edit())


def test_a_file_without_any_usable_box_is_refused(edit):
    def change(content):
        for annotation in content['annotations']:
            annotation['category_id'] = 99

    with pytest.raises(ValueError, match=r'none of whose boxes can be used: 0 of 3'):
        edit(change)


def test_a_file_without_images_is_refused(edit):
    with pytest.raises(ValueError, match=r'has annotation files without images: "images" is empty'):
        edit(lambda content: content.update(images=[]))


def test_repeated_names_in_an_object_are_refused(edit, tmp_path):
    path = tmp_path / 'ann.json'
    edit()
    text = path.read_text()
    path.write_text(text.replace('"annotations"', '"annotations": [], "annotations"'))
    with pytest.raises(ValueError, match=r"ann\.json is not JSON.*'annotations' twice"):
        CheckedCocoDataset(data_root=str(tmp_path), ann_file='ann.json')


def test_values_too_deep_to_keep_are_refused(edit, tmp_path):
    edit(replace('annotations', 0, segmentation='deep'))
    path = tmp_path / 'ann.json'
    path.write_text(path.read_text().replace('"deep"', '[' * 800 + '0' + ']' * 800))
    options = dict(data_root=str(tmp_path), ann_file='ann.json', data_prefix=dict(img=''))
    with pytest.raises(ValueError, match=r'Annotation file .*ann\.json nests values'):
        CheckedCocoDataset(**options)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'Cannot open annotation file.*gone\.json.*data_'):
        CheckedCocoDataset(ann_file='gone.json', data_root=str(tmp_path))
    for content in (b'{"images": [', b'<html>', b'', b'\xff\xfe\x80'):
        (tmp_path / 'a.json').write_bytes(content)
        with pytest.raises(ValueError, match=r'a\.json is not JSON'):
            CheckedCocoDataset(ann_file='a.json', data_root=str(tmp_path))


def test_several_files_are_refused(tmp_path):
    """mmengine would fail to join their paths, with an error of Python's own."""
    files = [f'{tmp_path}/a.json', f'{tmp_path}/b.json']
    with pytest.raises(ValueError, match=r'ann_file has 2 \(.*a.json, .*b.json\): join .*Concat'):
        CheckedCocoDataset(ann_file=files)


def test_bccd_drops_its_box_without_area(shared_dir, warnings):
    root = shared_dir / 'data/bccd'
    if not root.is_dir():
        pytest.skip(f'{root} is absent')
    dataset = CheckedCocoDataset(
        data_root=str(root), ann_file='annotations/train.json', data_prefix={'img': 'images/'}
    )
    assert dataset.metainfo['classes'] == ('RBC', 'WBC', 'Platelets')
    assert sum(map(len, boxes_of(dataset))) == 2804
    assert 'dropped 1 of 2805 boxes: 1 without area' in warnings[0].getMessage()
