from pathlib import Path

from deim_mmdet.engine.config import load_config
from deim_mmdet.models.data_preprocessors import DenseO2ODataPreprocessor

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

ROOT = Path(__file__).resolve().parents[2]
SIDE, COLUMNS = 96, 4


@pytest.fixture(scope='module')
def draw(load_tool, tmp_path_factory):
    """Draw a sheet of the demo's config by seed: {stage: (SIDE, width, 3)} strips of pictures."""
    pytest.importorskip('sklearn')
    maker = load_tool('demo/make_dataset.py')
    tool = load_tool('analysis/show_samples.py')
    root = tmp_path_factory.mktemp('data') / 'digits'
    digits = (0, 2, 3, 4)
    maker.make_dataset(root, maker.SceneSettings(train=12, val=1, size=(128, 128), digits=digits))
    path = ROOT / 'configs/demo/deim_dfine_demo.py'

    def draw_strips(seed: int) -> dict[str, np.ndarray]:
        config = load_config(str(path), dict(data_root=str(root)))
        init_default_scope('mmdet')
        dataset = DATASETS.build(config.train_dataloader.dataset)
        preprocessor = MODELS.build(config.model.data_preprocessor)
        sheet = tool.show_samples(dataset, preprocessor, COLUMNS, 1, SIDE, seed)
        row = (sheet.shape[0] - 6) // 4
        stages = ('warm-up', 'dense', 'flat', 'no-augmentation')
        # From a row's end upwards: without its caption, whose figures differ.
        ends = {stage: (i + 1) * row for i, stage in enumerate(stages)}
        return {stage: sheet[end - SIDE : end] for stage, end in ends.items()}

    return draw_strips


@pytest.mark.slow
def test_stages_augment_as_the_schedule_says(draw):
    strips = draw(seed=0)
    np.testing.assert_array_equal(strips['warm-up'], strips['no-augmentation'])
    for stage in ('dense', 'flat'):
        changed = (strips[stage] != strips['warm-up']).any(axis=2).mean()
        assert changed > 0.3, stage
    assert (strips['dense'] != strips['flat']).any(axis=2).mean() > 0.3


@pytest.mark.slow
def test_seed_decides(draw):
    first, again, other = draw(seed=0), draw(seed=0), draw(seed=1)
    for stage, strip in first.items():
        np.testing.assert_array_equal(strip, again[stage])
        assert (strip != other[stage]).any()


class OneImage(list):
    """A data set of an image (H, W, C) with a box in its left upper corner."""

    metainfo = dict(classes=['thing'])

    def __init__(self, image):
        objects = InstanceData(bboxes=torch.tensor([[2.0, 2, 8, 8]]), labels=torch.tensor([0]))
        sample = DetDataSample(metainfo=dict(img_shape=image.shape[:2]), gt_instances=objects)
        inputs = torch.from_numpy(image.transpose(2, 0, 1).copy())
        super().__init__([dict(inputs=inputs, data_samples=sample)])


@pytest.fixture(scope='module')
def draw_image(load_tool):
    """The drawn picture of an image of SIDE x SIDE pixels, as large as it is."""
    tool = load_tool('analysis/show_samples.py')

    def draw_one(image, **options):
        preprocessor = DenseO2ODataPreprocessor(**options)
        [tile], [count] = tool.draw_batch(OneImage(image), preprocessor, [0], SIDE)
        assert count == 1
        return tile

    return draw_one


@pytest.mark.parametrize('exchange', [True, False])
def test_pictures_show_the_values_before_they_are_normalised(draw_image, exchange):
    image = np.full((SIDE, SIDE, 3), (10, 90, 200), np.uint8)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    tile = draw_image(image, mean=mean, std=std, bgr_to_rgb=exchange)
    np.testing.assert_array_equal(tile[20:, 20:], image[20:, 20:])
    assert (tile[2, 3:8] != image[2, 3:8]).any(axis=1).all()


@pytest.mark.parametrize('channels', [1, 4, 6])
def test_images_of_other_channels_are_drawn(draw_image, channels):
    image = np.zeros((SIDE, SIDE, channels), np.float32)
    # The first channel is shown as red, or as grey where it is alone.
    image[50:, :, 0] = 4000
    tile = draw_image(image, mean=[800] * channels, std=[400] * channels)
    assert (tile[60:, 20:] == ((255, 255, 255) if channels == 1 else (0, 0, 255))).all()
    assert (tile[20:40, 20:] == 0).all()
