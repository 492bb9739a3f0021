"""Pictures of a config's data sets for deployed detectors, and their AP."""

from deim_mmdet.deployment.evaluation import calibration_set, evaluate, read_inputs, spread
from deim_mmdet.deployment.runtimes import Detections
from deim_mmdet.engine.agreement import checked_test_set
from deim_mmdet.engine.config import load_config

import numpy as np
import pytest
from golden import CONFIGS
from mmdet.registry import DATASETS
from mmengine.registry import init_default_scope
from red_boxes import OBJECTS, write_red_boxes

SIZE = (64, 64)


@pytest.fixture
def cfg(tmp_path):
    init_default_scope('mmdet')
    options = dict(data_root=f'{tmp_path}/', image_size=SIZE[0])
    return load_config(str(CONFIGS / 'demo' / 'deim_dfine_demo.py'), options)


def found(images, sizes):
    """A detector of red boxes that knows the labels."""
    height, width = images.shape[2:]
    rows, columns = (images[0, 0] > 0.5).nonzero()
    assert not images[0, 1:].any()
    x, y = sizes[0] / (width, height)
    box = columns.min() * x, rows.min() * y, (columns.max() + 1) * x, (rows.max() + 1) * y
    label = min(OBJECTS, key=lambda entry: np.abs(np.array(entry[0]) - box).max())[1]
    return Detections(
        np.array([[label]]), np.array([[box]], np.float32), np.array([[0.9]], np.float32)
    )


def figures(cfg, runtime, classes=None, size=SIZE):
    return evaluate(*checked_test_set(cfg, classes), runtime, size, 'test')


def test_evaluation_is_that_of_the_config(cfg, tmp_path):
    write_red_boxes(tmp_path, 'val')
    assert figures(cfg, found)['coco/bbox_mAP_50'] == 1

    def always_1(*inputs):
        return found(*inputs)._replace(labels=np.array([[1]]))

    assert figures(cfg, always_1)['coco/bbox_mAP_50'] == 0


def test_labels_are_in_the_order_of_the_checkpoint(cfg, tmp_path):
    """Whatever order the config gives the classes in."""
    write_red_boxes(tmp_path, 'val')
    classes = DATASETS.build(cfg.test_dataloader.dataset).metainfo['classes']
    assert len(set(classes)) > 1
    cfg.test_dataloader.dataset.metainfo = dict(classes=classes[::-1])
    assert figures(cfg, found, classes)['coco/bbox_mAP_50'] == 1
    assert figures(cfg, found, classes[::-1])['coco/bbox_mAP_50'] < 1


def test_calibration_takes_the_training_set_by_the_test_pipeline(cfg, tmp_path):
    for split in ('train', 'val'):
        write_red_boxes(tmp_path, split)
    dataset = calibration_set(cfg)
    assert dataset.ann_file.endswith('train.json')
    assert [type(step).__name__ for step in dataset.pipeline.transforms] == [
        step['type'] for step in cfg.test_dataloader.dataset.pipeline
    ]
    ((images, sizes), sample), *_ = read_inputs(dataset, [1], SIZE, 'test')
    assert images.shape == (1, 3, *SIZE)
    assert images.max() == 1
    assert sizes.tolist() == [[100, 50]]
    assert sample.img_id == 2
    (tmp_path / 'train.json').unlink()
    assert calibration_set(cfg).ann_file.endswith('val.json')


def test_mistakes(cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'neither training nor .*train\.json.*val\.json'):
        calibration_set(cfg)
    write_red_boxes(tmp_path, 'val')
    with pytest.raises(ValueError, match=r'gives 64x64, the exported model takes 96x64'):
        figures(cfg, found, size=(96, 64))


def test_pictures_are_spread_over_the_data_set():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 100) == [0, 1, 2]
