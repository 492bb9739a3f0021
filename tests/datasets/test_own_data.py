"""The configs for own data: each of them builds its training set, and trains."""

import json
import math
import shutil
from pathlib import Path

from deim_mmdet.engine.config import load_config, override_length
from deim_mmdet.engine.image_size import input_sizes
from deim_mmdet.utils.stage import Stage

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.registry import RUNNERS

CONFIGS = Path(__file__).parents[2] / 'configs' / 'own_data'
CLASSES = ('bright', 'dark')
SIDE = 64


def write_set(folder, name, labels, kind='png', tops=(255, 255, 255)):
    """Images named after the set, one object of the given class in each.

    Files of another ``kind`` have the channels with these largest values.
    """
    images = folder / 'images' / name
    images.mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    content = dict(images=[], annotations=[], categories=[])
    content['categories'] = [dict(id=i, name=n) for i, n in enumerate(CLASSES)]
    for i, label in enumerate(labels):
        image = np.full((SIDE, SIDE, 3), 128, np.uint8)
        x, y = 8 + 2 * i, 20
        image[y : y + 24, x : x + 32] = 0 if label else 255
        path = images / f'{name}_{i}.{kind}'
        if kind == 'png':
            cv2.imwrite(str(path), image)
        else:
            array = (image[..., :1] / 255 * tops).astype(np.uint16)
            planes = [np.ascontiguousarray(plane) for plane in array.transpose(2, 0, 1)]
            np.save(path, array) if kind == 'npy' else cv2.imwritemulti(str(path), planes)
        content['images'].append(dict(id=i, file_name=path.name, width=SIDE, height=SIDE))
        content['annotations'].append(
            dict(id=i, image_id=i, category_id=label, bbox=[x, y, 32, 24], area=768, iscrowd=0)
        )
    (folder / 'annotations' / f'{name}.json').write_text(json.dumps(content))


@pytest.fixture
def data_root(tmp_path):
    # One image in 20 has the rare class.
    write_set(tmp_path, 'train', [1] + [0] * 19)
    write_set(tmp_path, 'train_2', [0, 1])
    write_set(tmp_path, 'val', [0, 1])
    return tmp_path


def config(name, data_root, **options):
    return load_config(
        CONFIGS / f'{name}.py',
        dict(data_root=f'{data_root}/', classes=CLASSES, image_size=SIDE, **options),
    )


def training_set(name, data_root):
    dataset = DATASETS.build(config(name, data_root).train_dataloader.dataset)
    dataset.full_init()
    return dataset


def test_images_with_a_rare_class_come_more_often(data_root):
    dataset = training_set('class_balanced', data_root)
    labels = [dataset.dataset[i]['instances'][0]['bbox_label'] for i in range(len(dataset))]
    # Repeat factor sqrt(0.1 / 0.05), rounded up.
    assert labels.count(1) == math.ceil(math.sqrt(0.1 / 0.05))
    assert labels.count(0) == 19


def test_two_files_are_one_set(data_root):
    dataset = training_set('several_sets', data_root)
    names = [Path(dataset.dataset[i]['img_path']).name for i in range(len(dataset))]
    assert len(names) == 20 + 3 * 2
    assert names.count('train_19.png') == 1
    assert names.count('train_2_1.png') == 3
    assert dataset.metainfo['classes'] == CLASSES


def test_albumentations_move_pixels_and_boxes_alike(data_root):
    pytest.importorskip('albumentations')
    dataset = training_set('albumentations', data_root)
    (dense_o2o,) = (t for t in dataset.pipeline if hasattr(t, 'set_stage'))
    dense_o2o.set_stage(Stage.FLAT)
    (albu,) = (t for t in dense_o2o.single.transforms if type(t).__name__ == 'Albu')
    turned = 0
    for i in range(20):
        albu.aug.set_random_seed(i)  # Albumentations has its own generator
        sample = albu(dense_o2o._load(dict(dataset.dataset[i]), None))
        (box,) = sample['gt_bboxes'].tensor.round().int().tolist()
        height_of_box = box[3] - box[1]
        turned += height_of_box == 32
        far = np.abs(sample['img'].astype(int).mean(-1) - sample['img'][0, 0].mean()) > 40
        rows, columns = far.nonzero()
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # A blur smears the border.
        assert np.abs(np.subtract(found, box)).max() <= 3
    assert 0 < turned < 20


@pytest.mark.parametrize('where', ['inherited', 'own'])
def test_albumentations_follow_the_size_of_the_config(tmp_path, where):
    """Written into it, or into the config of the data."""
    text = (CONFIGS / 'albumentations.py').read_text()
    base = f'{CONFIGS.parent}/deim_dfine_custom.py'
    assert text.count('../deim_dfine_custom.py') == 1
    if where == 'inherited':
        (tmp_path / 'data.py').write_text(f"_base_ = '{base}'\nimage_size = (64, 96)\n")
        text = text.replace('../deim_dfine_custom.py', './data.py')
    else:
        text = text.replace("'../deim_dfine_custom.py'", f"'{base}'\nimage_size = (64, 96)")
    (tmp_path / 'own.py').write_text(text)
    cfg = load_config(tmp_path / 'own.py')
    assert input_sizes(cfg).keys() == {(64, 96)}
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert pipeline[0].mosaic[0].tile_size == 32
    kinds = [step['type'] for step in pipeline[0].single]
    assert kinds == ['Albu', 'DenseO2OZoomOut', 'DenseO2OIoUCrop']


def trainer(cfg, folder):
    override_length(cfg, 4)
    cfg.update(work_dir=str(folder / 'work'), launcher='none', load_from=None)
    cfg.model.backbone.init_cfg = None
    return RUNNERS.build(cfg)


@pytest.mark.parametrize(('name', 'kind'), [('multispectral', 'tiff'), ('grey', 'png')])
def test_other_channels_are_normalised_through_workers(name, kind, tmp_path):
    tops = [65535, 40000, 30000, 20000]
    write_set(tmp_path, 'train', [0] * 4, kind, tops)
    write_set(tmp_path, 'val', [0, 1], kind, tops)
    cfg = config(name, tmp_path, batch_size=2, num_workers=1, max_epochs=4)
    runner = trainer(cfg, tmp_path)
    preprocessor = runner.model.data_preprocessor
    (batch,) = runner.val_dataloader
    inputs = preprocessor(batch)['inputs']
    expected = np.array([1.0]) if name == 'grey' else np.array(tops) / 65535
    assert inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs.amax((0, 2, 3)), expected, rtol=1e-4)
    batch = preprocessor(next(iter(runner.train_dataloader)), training=True)
    assert batch['inputs'].shape[1] == len(expected)
    losses = runner.model(**batch, mode='loss')
    assert all(torch.isfinite(value).all() for value in losses.values())


@pytest.mark.slow
@pytest.mark.parametrize('name', ['albumentations', 'several_sets', 'multispectral'])
def test_it_trains(name, data_root, tmp_path):
    if name == 'albumentations':
        pytest.importorskip('albumentations')
    if name == 'multispectral':
        shutil.rmtree(data_root / 'images')
        write_set(data_root, 'train', [0, 1] * 10, 'npy', [65535] * 4)
        write_set(data_root, 'val', [0, 1], 'npy', [65535] * 4)
    cfg = config(name, data_root, batch_size=10, num_workers=0, max_epochs=4)
    runner = trainer(cfg, tmp_path)
    runner.train()
    assert runner.iter == 4 * (len(runner.train_dataloader.dataset) // 10)
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
