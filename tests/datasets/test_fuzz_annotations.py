"""Mutated annotation files give a usable data set or one clear error, and never a wrong box."""

import contextlib
import copy
import gc
import io
import json
import math
import random
import re
from collections import Counter

from deim_mmdet.datasets import CheckedCocoDataset
from deim_mmdet.utils.errors import UserError

import numpy as np
import pytest
import torch
from fuzzing import fuzz_count, time_limit
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.evaluation import CocoMetric
from mmengine.logging import MMLogger

pytestmark = pytest.mark.slow

PARTS = 4
FILES = fuzz_count(usual=1_000, full=10_000)

RLE = {'size': [48, 64], 'counts': 'PPYo0'}
ODD_VALUES = [
    *(None, True, False, 0, 1, -1, 3, 7, 2**31, 2**53 + 1, 2**63, -(2**64), 10**40, 10**400),
    *(0.5, 1.5, 3.0, -0.0, 1e-320, 1e17, 1e300, -1e308, math.nan, math.inf, -math.inf),
    *('', 'cat', '3', '1', 'nan', 'ä', '日本', '\U0001f600', '\ud800', '\0', 'a' * 5000),
    *([], {}, [[]], [None], [1, 2, 3], [1, 2, 3, 4, 5], ['1', '2', '3', '4'], {'id': 1}),
    *(
        [5, 5, True, 5],
        [5, 5, None, 5],
        [5, 5, math.nan, 5],
        [-1e17, 0, 1e17, 9],
        RLE,
        [[1, 1] * 3],
    ),
    *([60, 40, 10, 10], [-5, -5, 10, 10], [0, 0, 64, 48], [63.9, 0, 5, 5], [0, 0, 1e-9, 4]),
]
ODD_TOKENS = [
    *(b'NaN', b'Infinity', b'-Infinity', b'1e999', b'-1e999', b'1' * 400, b'9' * 5000, b'1e-400'),
    *(
        b'null',
        b'true',
        b'"',
        b'\\',
        b'\x00',
        b'\xff',
        b'{',
        b'}',
        b'[',
        b']',
        b',',
        b':',
        b'\\ud800',
    ),
    *(b'[' * 500, b'[' * 100_000, b'{"a":' * 990 + b'1' + b'}' * 990, b'[' * 800 + b']' * 800),
    *(b'"id": 1, ', b'"bbox": [1, 2, 3, 4], ', b'"annotations": [], '),
]


def base_file() -> dict:
    images = [
        dict(id=number, file_name=f'{number}.png', width=64, height=48) for number in (1, 2, 5)
    ]
    annotations = [
        dict(
            id=number,
            image_id=(1, 2, 5)[number % 3],
            category_id=(3, 7)[number % 2],
            bbox=[4 * number, 2.5, 12, 20 + number],
            area=12 * (20 + number),
            iscrowd=int(number == 6),
            segmentation=RLE if number == 6 else [[1, 1, 9, 1, 9, 9]],
        )
        for number in range(1, 9)
    ]
    categories = [dict(id=3, name='cat'), dict(id=7, name='dog')]
    return dict(info={}, images=images, annotations=annotations, categories=categories)


def places(node, found=None) -> list:
    """Every (container, key) in nested lists and dictionaries."""
    found = [] if found is None else found
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        found.append((node, key))
        if isinstance(value, dict | list):
            places(value, found)
    return found


def change_structure(rng: random.Random, content: dict) -> None:
    """One change to the values of a file."""
    candidates = places(content)
    # Most places are in segmentations and the like; what is read more often matters more.
    if rng.random() < 0.7:
        known = ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd', 'width', 'height')
        candidates = [place for place in candidates if place[1] in (*known, 0, 1, 2, 3)]
    if not candidates:
        return
    container, key = rng.choice(candidates)
    value = container[key]
    kind = rng.randrange(7)
    if isinstance(value, int | float) and rng.random() < 0.6:
        kind = 3
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(value))
    elif kind == 2:
        container[key] = [value]
    elif kind == 3 and isinstance(value, int | float):
        container[key] = value * rng.choice([-1, 0, 0.01, 0.5, 1.0, 2, 3, 1000])
    elif kind == 4:
        other, name = rng.choice(candidates)
        container[key] = copy.deepcopy(other[name]) if not _inside(value, container) else None
    elif kind == 5 and isinstance(container, dict):
        container[rng.choice(['ignore', 'iscrowd', 'bbox', 'extra'])] = rng.choice(ODD_VALUES)
    else:
        container[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def _inside(value, container) -> bool:
    return isinstance(value, dict | list) and any(place[0] is container for place in places(value))


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """One change to the text of a file."""
    at, kind = rng.randrange(len(data) + 1), rng.randrange(7)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + rng.choice(ODD_TOKENS) + data[at:]
    if kind == 2:  # in place of a number
        numbers = list(re.finditer(rb'-?[0-9.]+', data))
        if numbers:
            hit = rng.choice(numbers)
            return data[: hit.start()] + rng.choice(ODD_TOKENS) + data[hit.end() :]
    if kind == 3:
        flipped = bytearray(data)
        for _ in range(rng.randint(1, 3) if data else 0):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 4:
        with contextlib.suppress(UnicodeError):
            return data.decode().encode(rng.choice(['utf-16', 'utf-32', 'utf-8-sig', 'utf-16-le']))
    if kind == 5:
        return data[:at] + data[min(len(data), at + rng.randint(1, 40)) :]
    members = list(re.finditer(rb'"(\w+)": [^,\[\]{}]+, ', data))
    if members:  # a name that is there twice
        hit = rng.choice(members)
        return data[: hit.start()] + hit[0] + data[hit.start() :]
    return data + b' '


def mutated_file(seed: int) -> bytes:
    rng = random.Random(seed)
    content = base_file()
    for _ in range(rng.randint(0, 3)):
        change_structure(rng, content)
    data = json.dumps(content, ensure_ascii=rng.random() < 0.8).encode('utf-8', 'surrogatepass')
    if rng.random() < 0.3:
        data = change_bytes(rng, data)
    return data


@pytest.fixture
def logged(monkeypatch):
    messages = []
    monkeypatch.setattr(
        MMLogger.get_current_instance(), 'callHandlers', lambda r: messages.append(r.getMessage())
    )
    return messages


@pytest.fixture
def few_objects_to_collect():
    """mmengine collects garbage for each data set: seconds a file, were all modules looked at."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures('few_objects_to_collect')
@pytest.mark.parametrize('part', range(PARTS))
def test_mutated_files_are_read_rightly_or_refused_clearly(tmp_path, logged, part, capsys):
    outcomes = Counter()
    for seed in range(part, FILES, PARTS):
        data = mutated_file(seed)
        (tmp_path / 'ann.json').write_bytes(data)
        for evaluation in (False, True):
            logged.clear()
            try:
                with time_limit(20):
                    outcomes[check(tmp_path, data, logged, evaluation)] += 1
            except Exception as error:
                raise AssertionError(f'seed {seed}, evaluation {evaluation}') from error
    with capsys.disabled():
        print(f' {dict(outcomes)}', end='')
    assert outcomes['read'] > 0.2 * outcomes['refused'] > 0


def check(folder, data: bytes, logged: list[str], evaluation: bool) -> str:
    refusal = dataset = None
    try:
        dataset = CheckedCocoDataset(
            data_root=str(folder),
            ann_file='ann.json',
            data_prefix=dict(img=''),
            test_mode=evaluation,
        )
    except ValueError as error:
        refusal = error
    if refusal is not None:
        # Our own, and none of its kinds that Python's functions raise.
        assert type(refusal) is UserError
        assert str(refusal).startswith(f'Annotation file {folder}/ann.json ')
        str(refusal).encode()  # can be printed
        return 'refused'
    content = json.loads(data)
    check_boxes(dataset, content, logged)
    if evaluation:
        evaluate(dataset, content)
    return 'read'


def check_boxes(dataset, content: dict, logged: list[str]) -> None:
    """Every box is one of the file, at its image and of its class, and none is lost silently."""
    names = {category['id']: category['name'] for category in content['categories']}
    expected = Counter()
    for annotation in content.get('annotations', []):
        x, y, w, h = annotation['bbox']
        key = annotation['image_id'], names.get(annotation['category_id']), x, y, x + w, y + h
        expected[key] += 1
    kept = 0
    load = LoadAnnotations(with_bbox=True)
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        boxes = load.transform(dict(info))['gt_bboxes'].tensor
        assert torch.isfinite(boxes).all()
        clipped = np.clip(boxes.numpy(), 0, [info['width'], info['height']] * 2)
        assert (clipped[:, :2] < clipped[:, 2:]).all()
        for instance, box in zip(info['instances'], boxes, strict=True):
            label = dataset.metainfo['classes'][instance['bbox_label']]
            key = info['img_id'], label, *instance['bbox']
            assert expected[key] > 0
            expected[key] -= 1
            np.testing.assert_allclose(box, instance['bbox'], rtol=1e-6)
            kept += 1
    said = [re.search(r'dropped (\d+) of (\d+) boxes', message) for message in logged]
    dropped = sum(int(match[1]) for match in said if match)
    assert kept + dropped == len(content.get('annotations', []))


def evaluate(dataset, content: dict) -> None:
    """mmdet's metric reads the same file."""
    with contextlib.redirect_stdout(io.StringIO()):
        metric = CocoMetric(ann_file=dataset.ann_file, iou_thrs=np.array([0.5, 0.75]))
        metric.dataset_meta = dataset.metainfo
        samples = [
            dict(
                img_id=dataset.get_data_info(index)['img_id'],
                ori_shape=(48, 64),
                pred_instances=dict(
                    bboxes=torch.tensor([[4.0, 2.5, 16, 24]]),
                    scores=torch.tensor([0.9]),
                    labels=torch.tensor([0]),
                ),
            )
            for index in range(len(dataset))
        ]
        if samples and dataset.metainfo['classes']:
            metric.process({}, samples)
            results = metric.evaluate(len(samples))
            assert -1 <= results['coco/bbox_mAP'] <= 1
