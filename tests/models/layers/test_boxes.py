"""Overlaps of paired boxes, against mmdet's."""

from deim_mmdet.models.layers.boxes import paired_giou, paired_iou
from deim_mmdet.models.losses import PairedGIoULoss

import pytest
import torch
from mmdet.models.losses import GIoULoss
from mmdet.structures.bbox import bbox_overlaps
from torch.utils._python_dispatch import TorchDispatchMode


def pairs(apart=0.0):
    """Boxes (3, 50, 4) and others, of which some overlap, are apart, equal or empty."""
    torch.manual_seed(0)
    corner, extent = torch.rand(2, 2, 3, 50, 2, dtype=torch.float64)
    boxes, others = torch.cat([corner, corner + extent], dim=-1)
    others[:, 20:30] += apart
    others[:, 30:35] = boxes[:, 30:35]
    others[:, 35:40, 2:] = others[:, 35:40, :2]
    return boxes, others


@pytest.mark.parametrize('mode', ['iou', 'giou'])
@pytest.mark.parametrize('apart', [0.0, 2.0])
def test_overlaps_are_those_of_mmdet(mode, apart):
    boxes, others = pairs(apart)
    found = dict(iou=paired_iou, giou=paired_giou)[mode](boxes, others)
    expected = bbox_overlaps(boxes, others, mode=mode, is_aligned=True, eps=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert found.max() > 0.99
    assert apart == 0 or found[:, 20:30].max() <= 0


def test_empty_boxes():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert paired_iou(point, point).item() == 0
    assert paired_giou(point, point).isfinite()


def test_the_loss_is_that_of_mmdet():
    boxes, others = (part.flatten(0, 1)[:90] for part in pairs(0.5))
    weight, results = torch.rand(90, dtype=torch.float64), []
    for loss in (PairedGIoULoss(eps=1e-9, loss_weight=2.0), GIoULoss(eps=1e-9, loss_weight=2.0)):
        pred = boxes.clone().requires_grad_()
        values = [
            loss(pred, others),
            loss(pred, others, weight, avg_factor=7.0),
            loss(pred, others, weight, reduction_override='none').square().sum(),
            loss(pred, others, weight[:, None].expand(-1, 4), avg_factor=7.0),
        ]
        results.append([*values, *torch.autograd.grad(sum(values), pred)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_no_tensor_is_made_of_a_number():
    """A GPU would get it by a copy for which the host waits."""
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if 'lift_fresh' in str(function):
                made.append(function)
            return function(*args, **(kwargs or {}))

    boxes, others = pairs()
    with Watch():
        PairedGIoULoss()(boxes, others)
        assert not made
        bbox_overlaps(boxes, others, is_aligned=True)
        assert made
