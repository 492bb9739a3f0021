"""An image in a letterbox: proportions, padding, boxes, and the way back."""

import json
from pathlib import Path

from deim_mmdet.datasets.transforms import Letterbox
from deim_mmdet.deployment.detector import spanned_by_input
from deim_mmdet.engine import keep_aspect_ratio
from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.image_size import input_sizes
from deim_mmdet.models.dense_heads.query_selection_head import spanned_pixels

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import Resize
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes

CONFIGS = Path(__file__).parents[3] / 'configs'
SIZES = [(300, 200), (200, 300), (37, 640), (640, 640), (1000, 333), (33, 31)]


def sample(width, height):
    """A black image with one white rectangle, and its box."""
    image = np.zeros((height, width, 3), np.uint8)
    box = [width // 4, height // 4, width // 2, height // 2]
    image[box[1] : box[3], box[0] : box[2]] = 255
    boxes = HorizontalBoxes(torch.tensor([box], dtype=torch.float32))
    return dict(img=image, img_shape=(height, width), ori_shape=(height, width), gt_bboxes=boxes)


@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_proportions_padding_and_boxes(width, height):
    results = Letterbox(scale=(320, 256))(sample(width, height))
    image = results['img']
    assert image.shape == (256, 320, 3)
    factor = min(320 / width, 256 / height)
    inner = round(height * factor), round(width * factor)
    assert (image[inner[0] :] == 114).all()
    assert (image[:, inner[1] :] == 114).all()
    assert not (image[: inner[0], : inner[1]] == 114).all((1, 2)).any()
    rows, columns = (image[..., 0] > 128).nonzero()
    rows, columns = rows[rows < inner[0]], columns[columns < inner[1]]
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(results['gt_bboxes'].tensor[0], found, atol=1.5 + factor)


@pytest.mark.parametrize(('width', 'height'), [*SIZES, (2000, 2), (2, 2000)])
def test_evaluation_and_exported_graph_come_back_to_the_same_pixels(width, height):
    before = sample(width, height)
    original = before['gt_bboxes'].tensor.clone()
    results = Letterbox(scale=(320, 256))(before)
    normalised = results['gt_bboxes'].tensor / torch.tensor([320, 256] * 2)
    exported = spanned_by_input(torch.tensor([[width, height]]), (256, 320))
    torch.testing.assert_close(normalised * exported.repeat(1, 2), original, atol=1e-3, rtol=1e-5)
    meta = {name: results[name] for name in ('img_shape', 'ori_shape', 'scale_factor')}
    evaluated = spanned_pixels([DetDataSample(metainfo=meta)], rescale=True)
    torch.testing.assert_close(evaluated, exported, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(('side', 'scale'), [(640, 320), (100, 320), (333, 224), (64, 64)])
def test_square_images_are_those_of_resize(side, scale):
    """So square data have the same AP with ``keep_ratio``."""
    transforms = Letterbox(scale=(scale, scale)), Resize(scale=(scale, scale), keep_ratio=False)
    ours, theirs = (transform(sample(side, side)) for transform in transforms)
    assert (ours['img'] == theirs['img']).all()
    assert (ours['gt_bboxes'].tensor == theirs['gt_bboxes'].tensor).all()
    for name in ('img_shape', 'scale_factor'):
        assert ours[name] == theirs[name]


def test_a_config_says_it_once(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text(f"_base_ = '{CONFIGS}/deim_dfine_s.py'\nkeep_ratio = True\n")
    configs = [
        load_config(path, {}),
        load_config(CONFIGS / 'deim_dfine_s.py', dict(keep_ratio=True)),
        load_config(CONFIGS / 'deim_dfine_custom.py', dict(keep_ratio=True, image_size=(256, 320))),
    ]
    for cfg, size in zip(configs, [(640, 640), (640, 640), (256, 320)], strict=True):
        text = json.dumps(cfg.to_dict(), default=str)
        assert '"Resize"' not in text
        assert input_sizes(cfg).keys() == {size}
        assert cfg.train_dataloader.dataset.pipeline[2].type == 'Letterbox'
        assert keep_aspect_ratio(cfg) == 0


KEEPING = {
    'keep_ratio = True\n': 'a variable',
    'from deim_mmdet.engine import keep_aspect_ratio\nkeep_aspect_ratio(_base_)\n': 'a call',
}


@pytest.mark.parametrize('text', KEEPING, ids=KEEPING.values())
def test_switching_it_off_again(tmp_path, text):
    """In a config that inherits one with it, or by an option, also with a dumped config."""
    keeping, off, dumped = (tmp_path / f'{name}.py' for name in ('keeping', 'off', 'dumped'))
    keeping.write_text(f"_base_ = '{CONFIGS}/deim_dfine_s.py'\n{text}")
    off.write_text("_base_ = './keeping.py'\nkeep_ratio = False\n")
    cfg = load_config(keeping)
    assert cfg.keep_ratio is True
    assert '"Letterbox"' in json.dumps(cfg.to_dict(), default=str)
    cfg.dump(dumped)
    expected = load_config(CONFIGS / 'deim_dfine_s.py')
    for cfg in (
        load_config(off),
        load_config(keeping, dict(keep_ratio=False)),
        load_config(dumped, dict(keep_ratio=False)),
    ):
        assert cfg.keep_ratio is False
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'custom_hooks'):
            assert cfg[name] == expected[name]


def test_a_letterbox_written_by_hand(tmp_path):
    """``keep_ratio`` of a base says nothing about it, an option does."""
    path = tmp_path / 'own.py'
    path.write_text(
        f"_base_ = '{CONFIGS}/deim_dfine_s.py'\n"
        'resize = _base_.train_dataloader.dataset.pipeline[2]\n'
        "resize.update(type='Letterbox', pad_val=0)\nresize.pop('keep_ratio')\ndel resize\n"
    )
    assert load_config(path).train_dataloader.dataset.pipeline[2].type == 'Letterbox'
    stretched = load_config(path, dict(keep_ratio=False)).train_dataloader.dataset.pipeline[2]
    assert stretched == dict(type='Resize', scale=(640, 640), keep_ratio=False)
