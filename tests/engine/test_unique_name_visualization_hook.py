from pathlib import Path
from types import SimpleNamespace

from deim_mmdet.engine import UniqueNameVisualizationHook

import cv2
import numpy as np
import pytest
import toy
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.visualization import Visualizer


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
    names = [f'left/{name}.png' for name in (0, 1, 2, 'only')]
    names += [f'right/{number}.png' for number in (0, 1, 2, 3)]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob('*.png')) == names
    for (camera, number), colour in cameras.items():
        name = f'{camera}/{number}.png'
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


class Listed(BaseDataset):
    """A data set of these files; None is an image without one."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def get_data_info(self, index):
        return {} if self.paths[index] is None else {'img_path': self.paths[index]}


def names_of(drawing, folder, test_set, drawn=None):
    """Paths below the hook's folder of the pictures of ``drawn``, by default the test set's."""
    hook, calls = drawing
    test_set = [path and f'{folder}/{path}' for path in test_set]
    drawn = test_set if drawn is None else [f'{folder}/{path}' for path in drawn]
    _, picture = cv2.imencode('.png', np.full((6, 8, 3), 90, np.uint8))
    for path in map(Path, drawn):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.tobytes())
    loader = SimpleNamespace(dataset=Listed(test_set))
    runner = SimpleNamespace(work_dir='work', timestamp='now', test_dataloader=loader)
    hook.before_test(runner)
    samples = [DetDataSample(metainfo=dict(img_path=path)) for path in drawn]
    hook.after_test_iter(runner, 0, {}, samples)
    return [out_file.removeprefix('work/now/shown/') for _, _, out_file, _ in calls]


@pytest.mark.parametrize(
    ('test_set', 'names'),
    [
        (['a/b/1.jpg', 'a/b/2.jpg'], ['1.jpg', '2.jpg']),
        (['a/1.jpg', 'b/1.jpg', '1.jpg'], ['a/1.jpg', 'b/1.jpg', '1.jpg']),
        (['a/x/1.jpg', 'a/./z//1.jpg'], ['x/1.jpg', 'z/1.jpg']),
        (['a.jpg/1', 'b/1'], ['a.jpg/1.png', 'b/1.png']),
    ],
)
def test_pictures_lie_as_their_images_do(drawing, tmp_path, test_set, names):
    assert names_of(drawing, tmp_path, test_set) == names


def test_images_outside_of_the_test_set_keep_their_names(drawing, tmp_path):
    assert names_of(drawing, tmp_path, ['a/1.jpg', None], ['b/2.jpg', 'a/1.jpg']) == [
        '2.jpg',
        '1.jpg',
    ]


def test_test_sets_without_files_are_drawn(drawing, tmp_path):
    assert names_of(drawing, tmp_path, [None], ['b/2.jpg']) == ['2.jpg']


def test_configs_use_it_wherever_mmdets_tools_look_for_theirs(repo_root):
    """``--show-dir`` of mmdet's own tools sets options of the hook in this place."""
    runtime = Config.fromfile(
        repo_root / 'configs/_base_/default_runtime.py', import_custom_modules=False
    )
    assert runtime.default_hooks.visualization.type == UniqueNameVisualizationHook.__name__
    assert issubclass(UniqueNameVisualizationHook, DetVisualizationHook)
