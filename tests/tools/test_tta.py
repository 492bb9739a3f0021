"""The pipeline of tools/test.py --tta: what the model gets of an image and its mirror image."""

from deim_mmdet.engine.config import load_config

import cv2
import numpy as np
import pytest
import torch
from golden import CONFIGS
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope

SIDE = 64


@pytest.fixture
def augmented(load_tool, tmp_path):
    """Function: the samples that a test set's pipeline gives of an upright image of 20 x 40."""
    init_default_scope('mmdet')
    image = np.random.default_rng(0).integers(256, size=(40, 20, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'upright.png'), image)

    def augmented(cfg, dataset):
        load_tool('test.py').add_test_time_augmentation(cfg)
        instances = [dict(bbox=[2, 4, 6, 8], bbox_label=0, ignore_flag=0)]
        path = str(tmp_path / 'upright.png')
        return Compose(dataset(cfg).pipeline)(dict(img_path=path, img_id=0, instances=instances))

    return augmented


@pytest.mark.parametrize('keep_ratio', [True, False])
def test_the_image_is_mirrored_and_its_padding_stays(augmented, keep_ratio):
    options = dict(image_size=SIDE, keep_ratio=keep_ratio)
    cfg = load_config(str(CONFIGS / 'deim_dfine_n.py'), options)
    found = augmented(cfg, lambda cfg: cfg.test_dataloader.dataset)
    (mirrored, plain), samples = found['inputs'], found['data_samples']
    assert mirrored.shape == plain.shape == (3, SIDE, SIDE)
    width = SIDE // 2 if keep_ratio else SIDE
    torch.testing.assert_close(mirrored[..., :width].flip(-1), plain[..., :width], atol=1, rtol=0)
    assert (mirrored[..., width:] == 114).all()
    assert [sample.flip for sample in samples] == [True, False]
    # Merging mirrors the detections back in pixels of the original image.
    assert all(sample.ori_shape == (40, 20) for sample in samples)
    assert all(sample.scale_factor == (width / 20, SIDE / 40) for sample in samples)


def test_a_test_set_of_several(augmented):
    cfg = load_config(str(CONFIGS / 'deim_dfine_n.py'), dict(image_size=SIDE))
    parts = [cfg.test_dataloader.dataset] * 2
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    for i in range(2):
        found = augmented(cfg.copy(), lambda cfg, i=i: cfg.test_dataloader.dataset.datasets[i])
        assert len(found['inputs']) == 2
