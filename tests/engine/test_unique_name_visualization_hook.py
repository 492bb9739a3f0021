import random
from pathlib import Path
from types import SimpleNamespace

from deim_mmdet.engine import UniqueNameVisualizationHook
from deim_mmdet.engine.hooks.unique_name_visualization_hook import picture_names

import cv2
import numpy as np
import pytest
import toy
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.visualization import Visualizer


def names_below(folder, *paths):
    names = picture_names(f'{folder}/{path}' for path in paths)
    return [names[f'{folder}/{path}'] for path in paths]


def test_images_keep_names_that_no_other_has():
    assert names_below('/data', 'a/1.jpg', 'a/2.jpg', 'b/c/3.png') == ['1.jpg', '2.jpg', '3.png']
    assert picture_names([]) == {}
    # The same file, written in other ways.
    assert picture_names(['/data/1.jpg', '/data/a/../1.jpg', '/data//1.jpg']) == {
        '/data/1.jpg': '1.jpg'
    }


def test_equal_names_are_told_apart_by_their_folders():
    assert names_below('/data', 'a/1.jpg', 'b/1.jpg', 'b/2.jpg', '1.jpg') == [
        'a_1.jpg',
        'b_1.jpg',
        '2.jpg',
        '1.jpg',
    ]


def test_names_made_of_folders_give_way_to_others():
    assert names_below('/data', 'a/1.jpg', 'b/1.jpg', 'c/a_1.jpg') == [
        'a_1_2.jpg',
        'b_1.jpg',
        'a_1.jpg',
    ]
    assert sorted(names_below('/data', 'a/b_1.jpg', 'a_b/1.jpg', 'c/1.jpg', 'c/b_1.jpg')) == [
        'a_b_1.jpg',
        'a_b_1_2.jpg',
        'c_1.jpg',
        'c_b_1.jpg',
    ]


def test_long_paths_give_names_that_file_systems_take(tmp_path):
    folders = ['ü' * 100, 'x' * 200, 'y' * 200]
    paths = ['/'.join([first, *folders, '1.jpg']) for first in 'ab']
    names = names_below('/data', *paths)
    assert len(set(names)) == 2
    for name in names:
        (tmp_path / name).touch()
        assert name.endswith('1.jpg') or name.endswith('1_2.jpg')


def test_no_two_images_share_a_name_in_any_order():
    choose = random.Random(0)
    parts = ['a', '_', 'a_', '_a', 'a_a', '2', 'a_2', 'a_2_2']
    for _ in range(200):
        paths = set()
        for end in choose.choices(['.jpg', '.png', ''], k=30):
            folders = choose.choices(parts, k=choose.randint(0, 3))
            paths.add('/'.join(['/data', *folders, choose.choice(parts) + end]))
        names = picture_names(sorted(paths))
        assert names.keys() == paths
        assert len(set(names.values())) == len(paths)
        for path in paths:
            own = Path(path).name
            if [Path(other).name for other in paths].count(own) == 1:
                assert names[path] == own
            assert '/' not in names[path]
        assert picture_names(choose.sample(sorted(paths), len(paths))) == names


@pytest.fixture
def cameras(tmp_path):
    """Two folders of images of equal names, and one of another; each of a colour of its own."""
    colours = {}
    for camera, numbers in (('left', (1, 2)), ('right', (1, 2, 3))):
        toy.write_data_set(tmp_path / 'cameras' / camera, images=4)
        for number in numbers:
            colours[camera, number] = (50 * number, 40, 200 if camera == 'left' else 90)
            pixels = np.full((toy.SIDE, toy.SIDE, 3), colours[camera, number], np.uint8)
            cv2.imwrite(str(tmp_path / 'cameras' / camera / f'{number}.png'), pixels)
    return colours


def test_every_image_of_a_test_set_has_its_picture(make_runner, tmp_path, cameras):
    """A whole run of the test, with two data sets that are joined; one image has a single name."""
    (tmp_path / 'cameras/left/3.png').rename(tmp_path / 'cameras/left/only.png')
    file = tmp_path / 'cameras/left/all.json'
    file.write_text(file.read_text().replace('3.png', 'only.png'))
    config = Config.fromfile(toy.write_config(tmp_path), import_custom_modules=False)
    base = config.test_dataloader.dataset
    parts = [dict(base, data_root=f'{tmp_path}/cameras/{side}/') for side in ('left', 'right')]
    runner = make_runner(
        **{
            'test_dataloader.dataset': dict(
                _delete_=True,
                type='RepeatDataset',
                times=1,
                dataset=dict(type='ConcatDataset', datasets=parts),
            ),
            'test_evaluator': dict(_delete_=True, type='ScriptedMetric', scores=[0.5]),
            'default_hooks.visualization.draw': True,
            'default_hooks.visualization.test_out_dir': 'pictures',
        }
    )
    runner.test()
    [folder] = (tmp_path / 'work').glob('*/pictures')
    assert sorted(path.name for path in folder.iterdir()) == [
        '3.png',
        *(f'left_{number}.png' for number in (0, 1, 2)),
        'only.png',
        *(f'right_{number}.png' for number in (0, 1, 2)),
    ]
    for (camera, number), colour in cameras.items():
        name = '3.png' if (camera, number) == ('right', 3) else f'{camera}_{number}.png'
        shown = np.median(cv2.imread(str(folder / name)), axis=(0, 1))
        assert np.abs(shown - colour).max() <= 2, name


class DrawnSamples:
    """A visualizer that keeps what it is given to draw."""

    def __init__(self):
        self.calls = []

    def add_datasample(self, name, image, out_file=None, **options):
        self.calls.append((name, image, out_file, options['step']))


@pytest.fixture
def drawing(monkeypatch):
    """A hook that draws into the folder ``shown``, and the calls of its visualizer."""
    visualizer = DrawnSamples()
    monkeypatch.setattr(Visualizer, 'get_current_instance', lambda: visualizer)
    hook = UniqueNameVisualizationHook(draw=True, interval=2, test_out_dir='shown')
    return hook, visualizer.calls


def test_arrays_are_drawn_and_what_cannot_be_read_is_not(drawing, tmp_path):
    hook, calls = drawing
    np.save(tmp_path / 'a.npy', np.arange(6 * 8 * 5, dtype=np.uint16).reshape(6, 8, 5))
    cv2.imwrite(str(tmp_path / 'b.png'), np.full((6, 8, 3), (10, 20, 30), np.uint8))
    (tmp_path / 'c.png').touch()
    samples = [DetDataSample(metainfo=dict(img_path=f'{path}')) for path in tmp_path.iterdir()]
    samples.sort(key=lambda sample: sample.img_path)
    runner = SimpleNamespace(work_dir=str(tmp_path / 'work'), timestamp='now', iter=7)
    hook.after_test_iter(runner, 0, {}, samples)
    (_, array, first, _), (_, picture, second, step) = calls
    assert array.shape == (6, 8, 3)
    assert (picture == (30, 20, 10)).all()
    assert first == str(tmp_path / 'work/now/shown/a.npy.png')
    assert second == str(tmp_path / 'work/now/shown/b.png')
    assert step == 2
    for batch in range(2):
        hook.after_val_iter(runner, batch, {}, samples[:1])
    [(name, image, out_file, step)] = calls[2:]
    assert (name, image.shape, out_file, step) == ('val_img', (6, 8, 3), None, 8)


def test_configs_use_it_wherever_mmdets_tools_look_for_theirs(repo_root):
    """``--show-dir`` of mmdet's own tools sets options of the hook in this place."""
    runtime = Config.fromfile(
        repo_root / 'configs/_base_/default_runtime.py', import_custom_modules=False
    )
    assert runtime.default_hooks.visualization.type == UniqueNameVisualizationHook.__name__
    assert issubclass(UniqueNameVisualizationHook, DetVisualizationHook)
