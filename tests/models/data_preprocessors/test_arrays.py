"""mmdet's ``DetInferencer`` finds in arrays of any kind what it finds in three-channel bytes."""

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.config import Config


@pytest.fixture(scope='module')
def infer(tmp_path_factory, repo_root):
    """Function (array, **options) -> result of a tiny model with random weights."""
    folder = tmp_path_factory.mktemp('arrays')
    cfg = Config.fromfile(repo_root / 'configs/deim_dfine_n.py')
    cfg.model.backbone.init_cfg = None
    cfg.model.bbox_head.update(num_classes=3, num_queries=20)
    cfg.test_dataloader.dataset.metainfo = dict(classes=('a', 'b', 'c'), palette=[(255, 0, 0)] * 3)
    cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    cfg.dump(folder / 'tiny.py')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for heads in (model.bbox_head.decoder.score_heads, model.bbox_head.query_selection.score):
        for parameter in heads.parameters():
            # Scores as after training, so that they differ and some are drawn.
            torch.nn.init.normal_(parameter, std=0.2)
    meta = dict(dataset_meta=dict(classes=('a', 'b', 'c')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'tiny.pth')
    return DetInferencer(
        str(folder / 'tiny.py'), str(folder / 'tiny.pth'), device='cpu', show_progress=False
    )


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def detections(infer, image):
    (found,) = infer(image, no_save_vis=True)['predictions']
    assert len(found['scores']) == 60
    return found


def test_grey_arrays_and_alpha(infer, picture):
    grey = picture[..., :1]
    expected = detections(infer, grey.repeat(3, axis=-1))
    in_colour = detections(infer, picture)
    assert expected != in_colour
    for array in (grey[..., 0], grey, np.concatenate([grey, 255 - grey], axis=-1)):
        assert detections(infer, array) == expected
    assert detections(infer, np.concatenate([picture, 255 - grey], axis=-1)) == in_colour


@pytest.mark.parametrize('shape', [(64, 64), (64, 64, 1), (64, 64, 3), (64, 64, 4)])
def test_sixteen_bits(infer, shape):
    """At the size of the network's input; a resize rounds 16 bits another way than 8."""
    shorts = np.random.default_rng(0).integers(0, 2**16, shape, dtype=np.uint16)
    assert detections(infer, shorts) == detections(infer, (shorts // 256).astype(np.uint8))


def test_array_as_the_file_of_the_same_picture(infer, picture, tmp_path):
    """A grey picture file is loaded as three channels."""
    path = str(tmp_path / 'grey.png')
    cv2.imwrite(path, picture[..., 0])
    assert detections(infer, picture[..., 0]) == detections(infer, path)


def test_arrays_are_drawn_and_saved(infer, picture, tmp_path):
    opaque = np.full_like(picture[..., :1], 255)
    arrays = [picture[..., 0], picture[..., :1], np.concatenate([picture, opaque], axis=-1)]
    result = infer(arrays, return_vis=True, pred_score_thr=0.5, out_dir=str(tmp_path))
    for array, drawn in zip(arrays, result['visualization'], strict=True):
        assert drawn.shape == (50, 70, 3)
        # Boxes and their names beside a picture without any.
        plain = infer(array, return_vis=True, pred_score_thr=1.0)['visualization'][0]
        assert 0.05 < (plain != drawn).mean() < 1
    for saved in (tmp_path / 'vis').iterdir():
        assert cv2.imread(str(saved)).shape == (50, 70, 3)
    assert len(list((tmp_path / 'vis').iterdir())) == 3
