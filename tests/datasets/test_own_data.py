"""The configs for own data: each of them builds its training set, and trains."""

import json
import math
from pathlib import Path

from deim_mmdet.engine.config import load_config, override_length
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


def write_set(folder, name, labels):
    """Images named after the set, one object of the given class in each."""
    images = folder / 'images' / name
    images.mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    content = dict(images=[], annotations=[], categories=[])
    content['categories'] = [dict(id=i, name=n) for i, n in enumerate(CLASSES)]
    for i, label in enumerate(labels):
        image = np.full((SIDE, SIDE, 3), 128, np.uint8)
        x, y = 8 + 2 * i, 20
        image[y : y + 24, x : x + 32] = 0 if label else 255
        cv2.imwrite(str(images / f'{name}_{i}.png'), image)
        content['images'].append(dict(id=i, file_name=f'{name}_{i}.png', width=SIDE, height=SIDE))
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
        np.random.seed(i)
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


@pytest.mark.slow
@pytest.mark.parametrize('name', ['albumentations', 'several_sets'])
def test_it_trains(name, data_root, tmp_path):
    if name == 'albumentations':
        pytest.importorskip('albumentations')
    cfg = config(name, data_root, batch_size=10, num_workers=0, max_epochs=4)
    override_length(cfg, 4)
    cfg.update(work_dir=str(tmp_path / 'work'), launcher='none', load_from=None)
    cfg.model.backbone.init_cfg = None
    runner = RUNNERS.build(cfg)
    runner.train()
    assert runner.iter == 4 * (len(runner.train_dataloader.dataset) // 10)
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
