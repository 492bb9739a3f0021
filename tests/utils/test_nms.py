"""Non-maximum suppression in PyTorch against loops, by itself and as mmcv and mmdet call it."""

import sys
from types import ModuleType

from deim_mmdet.compat import MissingOperatorError
from deim_mmdet.utils.nms import nms

import mmcv.ops
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils.large_image import merge_results_by_nms
from mmdet_tools import HAS_OPERATORS, TOOLS
from mmengine.config import Config
from mmengine.structures import InstanceData


def random_boxes(seed, number=80, whole=False, levels=None):
    """Boxes (N, 4) and scores (N,).

    Args:
        seed: Of the draw.
        number: N.
        whole: Whether coordinates are whole numbers, so that many IoUs are the threshold itself.
        levels: Number of different scores; None draws them all anew.
    """
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=generator) * 60
    sides = torch.rand(number, 2, generator=generator) * 30
    scores = torch.rand(number, generator=generator)
    if whole:
        corners, sides = corners.round(), sides.round()
    if levels:
        scores = (scores * levels).floor() / levels
    return torch.cat([corners, corners + sides], 1), scores


def iou(a, b, offset):
    """IoU of two boxes in single precision, side by side; None where neither has an area."""
    a, b, offset = a.numpy(), b.numpy(), np.float32(offset)
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, np.float32(0))
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    union = areas[0] + areas[1] - width * height
    return width * height / union if union else None


def slow_nms(boxes, scores, threshold, offset=0):
    """A box stays unless one that stays comes before it and overlaps it too much."""
    kept = []
    for index in scores.sort(descending=True).indices.tolist():
        overlaps = (iou(boxes[index], boxes[other], offset) for other in kept)
        if not any(each is not None and each > np.float32(threshold) for each in overlaps):
            kept.append(index)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('levels', [None, 5], ids=['distinct', 'ties'])
@pytest.mark.parametrize('whole', [False, True], ids=['real', 'whole'])
@pytest.mark.parametrize('threshold', [0.0, 0.1, 0.5, 0.8, 1.0])
def test_it_is_what_loops_give(threshold, whole, levels, offset):
    for seed in range(4):
        boxes, scores = random_boxes(seed, whole=whole, levels=levels)
        expected = slow_nms(boxes, scores, threshold, offset)
        found = nms(boxes, scores, threshold, offset)
        assert found.dtype == torch.int64
        assert found.tolist() == expected
        # As mmcv calls its operator, whichever that is.
        dets, indices = mmcv.ops.nms(boxes, scores, threshold, offset)
        assert indices.tolist() == expected
        assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[expected])


def test_few_boxes():
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)
    assert nms(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0.1]), 0.5).tolist() == [0]
    # Points have no IoU, and touching boxes the IoU 0 or, of pixels, a third.
    points = torch.tensor([[5.0, 5, 5, 5]]).repeat(3, 1)
    assert nms(points, torch.tensor([0.1, 0.3, 0.2]), 0.5).tolist() == [1, 2, 0]
    assert nms(points, torch.tensor([0.1, 0.3, 0.2]), 0.5, offset=1).tolist() == [1]
    touching, scores = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]]), torch.tensor([0.9, 0.8])
    assert nms(touching, scores, 0.0).tolist() == [0, 1]
    assert nms(touching, scores, 0.3, offset=1).tolist() == [0]
    assert nms(touching, scores, 0.34, offset=1).tolist() == [0, 1]


def test_other_types_of_numbers():
    boxes, scores = random_boxes(0, whole=True)
    expected = nms(boxes, scores, 0.5).tolist()
    assert nms(boxes.double(), scores.double(), 0.5).tolist() == expected
    # The areas of some are beyond float16's range.
    assert nms((boxes * 16).half(), scores, 0.5).tolist() == expected


def test_options_of_mmcv():
    boxes, scores = random_boxes(1)
    expected = slow_nms(boxes, scores, 0.4)
    _, indices = mmcv.ops.nms(boxes, scores, 0.4, max_num=5)
    assert indices.tolist() == expected[:5]
    _, indices = mmcv.ops.nms(boxes, scores, 0.4, score_threshold=0.3)
    assert indices.tolist() == [index for index in expected if scores[index] > 0.3]
    dets, indices = mmcv.ops.nms(boxes.numpy(), scores.numpy(), 0.4)
    assert isinstance(dets, np.ndarray)
    assert indices.tolist() == expected


@pytest.mark.parametrize('split', [10000, 10], ids=['at once', 'by class'])
def test_boxes_of_different_classes_stay(split):
    # Whole numbers, which stay exact where mmcv moves the classes apart.
    boxes, scores = random_boxes(2, whole=True)
    classes = torch.arange(len(boxes)) % 3
    config = dict(type='nms', iou_threshold=0.3, split_thr=split)
    expected = []
    for number in range(3):
        of_class = (classes == number).nonzero()[:, 0]
        kept = slow_nms(boxes[of_class], scores[of_class], 0.3)
        expected += of_class[kept].tolist()
    expected.sort(key=lambda index: -scores[index])
    dets, indices = mmcv.ops.batched_nms(boxes, scores, classes, config)
    assert indices.tolist() == expected
    assert torch.equal(dets[:, 4], scores[indices])
    _, indices = mmcv.ops.batched_nms(boxes, scores, classes, config, class_agnostic=True)
    if split > len(boxes):
        assert indices.tolist() == slow_nms(boxes, scores, 0.3)


@pytest.mark.parametrize(
    'config',
    [
        'retinanet/retinanet_r18_fpn_1x_coco.py',
        'gfl/gfl_r50_fpn_1x_coco.py',
        'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    ],
)
def test_detectors_of_mmdet_predict(config):
    cfg = Config.fromfile(TOOLS.parent / 'configs' / config)
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.update(score_thr=0.0, nms_pre=100, max_per_img=1000)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    shape = dict(img_shape=(128, 128), ori_shape=(128, 128), scale_factor=(1.0, 1.0))
    [sample] = model.predict(torch.rand(1, 3, 128, 128), [DetDataSample(metainfo=shape)])
    found = sample.pred_instances
    threshold = cfg.model.test_cfg.nms.iou_threshold
    assert len(found) > 20
    for number in found.labels.unique():
        boxes = found.bboxes[found.labels == number]
        apart = [iou(a, b, 0) or 0 for i, a in enumerate(boxes) for b in boxes[:i]]
        assert max(apart, default=0) <= threshold + 1e-3


@pytest.fixture
def slicing(monkeypatch):
    """What mmdet takes of SAHI, where it isn't installed: boxes are moved by (x, y)."""
    try:
        import sahi.slicing
    except ImportError:
        sahi, module = ModuleType('sahi'), ModuleType('sahi.slicing')
        module.shift_bboxes = lambda boxes, offset: boxes + boxes.new_tensor([*offset] * 2)
        module.shift_masks = None
        monkeypatch.setitem(sys.modules, 'sahi', sahi)
        monkeypatch.setitem(sys.modules, 'sahi.slicing', module)


def test_tiles_of_a_large_image_are_merged(slicing):
    """An object that two tiles show is there once, by its better box; another class stays."""
    tiles = [
        dict(bboxes=[[50.0, 10, 60, 20], [5, 5, 9, 9]], scores=[0.7, 0.6], labels=[0, 1]),
        dict(bboxes=[[10.0, 10, 21, 20], [10, 10, 21, 20]], scores=[0.8, 0.3], labels=[0, 1]),
    ]
    results = []
    for tile in tiles:
        found = InstanceData(**{name: torch.tensor(values) for name, values in tile.items()})
        results.append(DetDataSample(pred_instances=found))
    config = dict(type='nms', iou_threshold=0.25)
    merged = merge_results_by_nms(results, [(0, 0), (40, 0)], (64, 104), config).pred_instances
    assert merged.scores.tolist() == pytest.approx([0.8, 0.6, 0.3])
    assert merged.labels.tolist() == [0, 1, 1]
    assert merged.bboxes.tolist() == [[50, 10, 61, 20], [5, 5, 9, 9], [50, 10, 61, 20]]


@pytest.mark.skipif(HAS_OPERATORS, reason='MMCV has its operators')
def test_other_operators_are_missing():
    boxes, scores = random_boxes(0)
    with pytest.raises(MissingOperatorError, match=r'softnms is called, .* without operators'):
        mmcv.ops.soft_nms(boxes, scores)
    with pytest.raises(MissingOperatorError, match='roi_align_forward is called'):
        mmcv.ops.roi_align(torch.rand(1, 1, 8, 8), torch.zeros(1, 5), 2)
