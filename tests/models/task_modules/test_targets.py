"""Targets of a batch against the samples that they are made from."""

from deim_mmdet.models.task_modules import Targets

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch.utils._python_dispatch import TorchDispatchMode

SIZE = (64, 96)


def sample(count, dtype=torch.float32, **meta):
    corner = torch.rand(count, 2, dtype=dtype) * 30
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, dtype=dtype) * 20], -1)
    found = DetDataSample(metainfo=dict(img_shape=SIZE, **meta))
    found.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(80, (count,)))
    return found


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('counts', [(3, 0, 5), (0, 0), (1,)])
def test_objects_are_normalised_and_padded(counts, dtype):
    samples = [sample(count, dtype) for count in counts]
    targets = Targets.from_samples(samples, torch.device('cpu'))
    assert (targets.counts, targets.total) == ([*counts], sum(counts))
    assert targets.labels.shape == (len(counts), max(counts))
    assert targets.boxes.shape == (len(counts), max(counts), 4)
    assert targets.boxes.dtype == dtype
    for index, each in enumerate(samples):
        for item in range(max(counts)):
            if item >= counts[index]:
                assert targets.labels[index, item] == -1
                assert not targets.boxes[index, item].any()
                continue
            x1, y1, x2, y2 = each.gt_instances.bboxes[item].tolist()
            box = [(x1 + x2) / 2 / 96, (y1 + y2) / 2 / 64, (x2 - x1) / 96, (y2 - y1) / 64]
            assert targets.boxes[index, item].tolist() == pytest.approx(box, rel=1e-6)
            assert targets.labels[index, item] == each.gt_instances.labels[item]


def test_boxes_are_relative_to_the_padded_batch():
    samples = [sample(2, batch_input_shape=(128, 192))]
    targets = Targets.from_samples(samples, torch.device('cpu'))
    widths = samples[0].gt_instances.bboxes[:, 2] - samples[0].gt_instances.bboxes[:, 0]
    torch.testing.assert_close(targets.boxes[0, :, 2], widths / 192)


class Copies(TorchDispatchMode):
    """Counts what goes from one device to another."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        source = next((a.device for a in args if isinstance(a, torch.Tensor)), None)
        if isinstance(result, torch.Tensor) and source not in (None, result.device):
            self.count += 1
        return result


def test_a_batch_reaches_its_device_in_one_copy():
    """torch's "meta" device stands for a GPU: it has shapes, and no values."""
    samples = [sample(count) for count in (3, 0, 5)]
    with Copies() as copies:
        targets = Targets.from_samples(samples, torch.device('meta'))
    assert copies.count == 1
    assert targets.labels.shape == (3, 5)
    assert targets.labels.dtype == torch.int64
    assert targets.boxes.shape == (3, 5, 4)
    assert {targets.labels.device.type, targets.boxes.device.type} == {'meta'}
