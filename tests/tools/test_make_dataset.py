import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tool(load_tool):
    pytest.importorskip('sklearn')
    return load_tool('demo/make_dataset.py')


@pytest.fixture(scope='module')
def settings(tool):
    return tool.SceneSettings(train=6, val=4, size=(96, 160), objects=(1, 3), digits=(0, 1, 7))


@pytest.fixture(scope='module')
def folder(tool, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'digits'
    assert tool.make_dataset(out, settings)
    return out


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


@pytest.mark.parametrize('split', ['train', 'val'])
def test_pycocotools_reads_it(folder, settings, split):
    coco = COCO(str(folder / f'{split}.json'))
    assert len(coco.imgs) == getattr(settings, split)
    assert [c['name'] for c in coco.cats.values()] == ['digit_0', 'digit_1', 'digit_7']
    for image_id, entry in coco.imgs.items():
        image = cv2.imread(str(folder / split / entry['file_name']))
        assert image.shape == (entry['height'], entry['width'], 3) == (96, 160, 3)
        annotations = coco.imgToAnns[image_id]
        assert 1 <= len(annotations) <= 3
        for annotation in annotations:
            x, y, width, height = annotation['bbox']
            assert min(x, y) >= 0
            assert min(width, height) > 0
            assert x + width <= 160
            assert y + height <= 96


def test_same_settings_give_the_same_bytes(tool, settings, folder, tmp_path):
    tool.make_dataset(tmp_path / 'again', settings)
    assert contents(tmp_path / 'again') == contents(folder)
    tool.make_dataset(tmp_path / 'other', replace(settings, seed=1))
    assert contents(tmp_path / 'other')['train/00000.jpg'] != contents(folder)['train/00000.jpg']


def test_processes_change_no_byte(tool, settings, folder, tmp_path):
    # Processes find the tool's functions by name.
    sys.modules[tool.__name__] = tool
    try:
        tool.make_dataset(tmp_path / 'again', settings, jobs=2)
    finally:
        del sys.modules[tool.__name__]
    assert contents(tmp_path / 'again') == contents(folder)


def test_more_images_leave_the_first_ones_as_they_are(tool, settings, folder, tmp_path):
    tool.make_dataset(tmp_path / 'more', replace(settings, train=8))
    more, few = contents(tmp_path / 'more'), contents(folder)
    assert all(more[f'train/{i:05d}.jpg'] == few[f'train/{i:05d}.jpg'] for i in range(6))


def test_splits_share_no_source(tool, settings):
    train, val = (tool.load_material(settings, split) for split in ('train', 'val'))
    for digit in settings.digits:
        seen = {scan.tobytes() for scan in train.scans[digit]}
        held_out = {scan.tobytes() for scan in val.scans[digit]}
        assert len(held_out) > 20
        assert not seen & held_out
    # Left and right halves of the same photographs.
    for left, right in zip(train.photographs, val.photographs, strict=True):
        assert left.shape == right.shape == (427, 320, 3)
        assert not np.array_equal(left, right)


def test_boxes_are_tight_to_the_visible_ink(tool, settings):
    """Paint with a pure colour on black, so that the ink can be found again in the picture."""
    material = tool.load_material(settings, 'train')
    black = tool.Material(material.scans, [np.zeros((427, 320, 3), np.uint8)])
    one = replace(settings, objects=(1, 1))
    for seed in range(10):
        image, boxes, _ = tool.compose(black, one, np.random.default_rng(seed))
        x, y, width, height = boxes[0]
        # The colour's brightest channel on the stroke; half of it is where the ink ends.
        bright = image.max(axis=2).astype(float)
        rows, columns = np.nonzero(bright > 0.5 * np.quantile(bright[bright > 90], 0.9))
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found, [x, y, x + width, y + height], atol=1)


def test_crowds_overlap_and_stay_visible(tool, settings):
    material = tool.load_material(settings, 'train')
    crowd = replace(settings, objects=(12, 12), scale=(0.15, 0.4))
    overlapping = 0
    for seed in range(4):
        _, boxes, digits = tool.compose(material, crowd, np.random.default_rng(seed))
        assert 8 <= len(boxes) == len(digits) <= 12
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        low = np.maximum(corners[:, None, :2], corners[None, :, :2])
        high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
        overlapping += np.triu((high > low).all(axis=-1), 1).sum()
        # Nothing was pasted over: half of the least height, thinned by the least stretch.
        assert boxes[:, 2:].max(axis=1).min() >= 0.5 * 0.15 * 96
    assert overlapping > 0


def test_keeps_what_is_there_and_replaces_only_its_own(tool, settings, folder, tmp_path):
    assert not tool.make_dataset(folder, settings)
    out = tmp_path / 'digits'
    tool.make_dataset(out, replace(settings, train=2, val=1))
    assert tool.make_dataset(out, replace(settings, train=1, val=1))
    assert len(list((out / 'train').iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['digits']
    foreign = tmp_path / 'foreign'
    foreign.mkdir()
    with pytest.raises(FileExistsError, match=str(foreign)):
        tool.make_dataset(foreign, settings)


def test_an_interrupted_run_leaves_nothing(tool, settings, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, 'compose', fail)
    with pytest.raises(KeyboardInterrupt):
        tool.make_dataset(tmp_path / 'digits', settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('train', 0),
        ('size', (64, 8)),
        ('size', (64, 64, 64)),
        ('objects', (3, 1)),
        ('scale', (0.0, 0.5)),
        ('scale', (0.5, 1.2)),
        ('digits', (0, 10)),
        ('digits', ()),
    ],
)
def test_bad_settings_are_named(tool, option, value):
    with pytest.raises(ValueError, match=option):
        tool.SceneSettings(**{option: value})


def test_description_counts(tool, folder):
    boxes = json.loads((folder / 'train.json').read_text())['annotations']
    assert f'train: 6 images, {len(boxes)} objects of 3 classes' in tool.describe(folder)
