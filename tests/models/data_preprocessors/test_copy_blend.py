"""Copy-blend against the same written down pixel by pixel."""

from deim_mmdet.models.data_preprocessors import (
    DenseO2OCopyBlend,
    DenseO2ODataPreprocessor,
    DenseO2OMixUp,
)
from deim_mmdet.utils import Stage

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes, get_box_tensor
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData

HEIGHT, WIDTH = 48, 64


def make_sample(boxes, number=0, box_type=torch.as_tensor):
    """A sample of image ``number``; each object's label and id tell it from all others."""
    sample = DetDataSample(metainfo=dict(img_shape=(HEIGHT, WIDTH), img_id=number))
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ids = torch.arange(len(boxes)) + 10 * number
    sample.gt_instances = InstanceData(bboxes=box_type(boxes), labels=ids % 7, instances_ids=ids)
    return sample


def make_batch(boxes, box_type=torch.as_tensor):
    """Noise images with the boxes of each."""
    images = torch.rand(len(boxes), 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    return images, [make_sample(b, n, box_type) for n, b in enumerate(boxes)]


BOXES = [
    [(2.25, 3.5, 20.75, 17.25), (40, 30, 64, 48), (5, 40, 14, 44)],
    [],
    [(0, 0, 30.5, 9), (10, 10, 20, 20), (1, 1, 2, 2), (0, 0, 64, 48)],
]
SOURCES = {10 * n + k: (n, box) for n, boxes in enumerate(BOXES) for k, box in enumerate(boxes)}
# Of 36, 100 and 1 square pixels; all others are larger.
SMALL = {2, 22}


def copies_of(samples):
    """(image, id, box) of the objects that the batch of BOXES has got."""
    for image, sample in enumerate(samples):
        objects, own = sample.gt_instances, len(BOXES[image])
        boxes = get_box_tensor(objects.bboxes)
        assert boxes[:own].tolist() == [[*map(float, box)] for box in BOXES[image]]
        assert objects.labels.tolist() == [i % 7 for i in objects.instances_ids.tolist()]
        yield from (
            (image, int(objects.instances_ids[k]), boxes[k].tolist())
            for k in range(own, len(objects))
        )


@pytest.mark.parametrize('box_type', [torch.as_tensor, HorizontalBoxes])
def test_pixels_and_boxes_are_those_of_the_objects(box_type):
    """Without context, and one copy an image, each pixel is known."""
    for seed in range(5):
        np.random.seed(seed)
        inputs, samples = make_batch(BOXES, box_type)
        augment = DenseO2OCopyBlend(
            prob=1, num_objects=1, ratio=(0.3, 0.3), context=(0, 0), min_area=99
        )
        out, samples = augment(inputs, samples)
        expected = inputs.clone()
        copies = list(copies_of(samples))
        assert [image for image, *_ in copies] == [0, 1, 2]
        for image, number, box in copies:
            source, (x1, y1, x2, y2) = SOURCES[number]
            left, top = box[0] - x1, box[1] - y1
            assert left == round(left)
            assert top == round(top)
            assert box == pytest.approx([x1 + left, y1 + top, x2 + left, y2 + top])
            assert 0 <= box[0] < box[2] <= WIDTH
            assert 0 <= box[1] < box[3] <= HEIGHT
            for row in range(int(y1), int(np.ceil(y2))):
                for column in range(int(x1), int(np.ceil(x2))):
                    place = image, slice(None), row + int(top), column + int(left)
                    new = 0.3 * inputs[place] + 0.7 * inputs[source, :, row, column]
                    expected[place] = new
        torch.testing.assert_close(out, expected)
        assert isinstance(samples[0].gt_instances.bboxes, type(box_type(torch.zeros(1, 4))))


def test_each_image_gets_different_large_objects_of_the_batch():
    np.random.seed(0)
    seen = set()
    for _ in range(40):
        _, samples = DenseO2OCopyBlend(prob=1)(*make_batch(BOXES))
        by_image = {}
        for image, number, _ in copies_of(samples):
            by_image.setdefault(image, []).append(number)
        for numbers in by_image.values():
            assert len(numbers) == len(set(numbers)) == 3
            seen.update(numbers)
    assert seen == SOURCES.keys() - SMALL
    # Two objects only: all of them, in each image.
    _, samples = DenseO2OCopyBlend(prob=1)(*make_batch([BOXES[0][:2], [], []]))
    assert [len(sample.gt_instances) for sample in samples] == [4, 2, 2]


def test_places_shares_and_context_are_drawn_uniformly():
    """A white object with white around it, on black: the copy in a black image tells them all."""
    np.random.seed(0)
    images, shares, corners, margins = torch.zeros(2, 3, HEIGHT, WIDTH), [], [], []
    images[0, :, 11:41, 15:45] = 1
    for _ in range(500):
        samples = [make_sample([(20, 16, 40, 36)]), make_sample([])]
        out, (_, sample) = DenseO2OCopyBlend(prob=1)(images, samples)
        (box,) = sample.gt_instances.bboxes.int().tolist()
        corners.append(box[:2])
        rows, columns = out[1, 0].nonzero(as_tuple=True)
        hull = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        copy = out[1, :, hull[1] : hull[3], hull[0] : hull[2]]
        assert (copy == copy[0, 0, 0]).all()
        shares.append(float(copy[0, 0, 0]))
        # Equally wide on all sides, up to the border of the image.
        around = [box[0] - hull[0], box[1] - hull[1], hull[2] - box[2], hull[3] - box[3]]
        room = [box[0], box[1], WIDTH - box[2], HEIGHT - box[3]]
        assert around == [min(max(around), space) for space in room]
        margins.append(max(around))
    for drawn, highest in zip(np.transpose(corners), (WIDTH - 20, HEIGHT - 20), strict=True):
        assert {*drawn.tolist()} == {*range(highest + 1)}
        assert drawn.mean() == pytest.approx(highest / 2, abs=0.05 * highest)
    assert 0.45 <= min(shares) < 0.455
    assert 0.545 < max(shares) <= 0.55
    # 10 to 25 % of 20 pixels, rounded down.
    assert {*margins} == {2, 3, 4}


@pytest.mark.parametrize(
    ('prob', 'stages', 'acts'),
    [(0.5, ('dense', 'flat'), {Stage.DENSE, Stage.FLAT}), (0.4, ('dense',), {Stage.DENSE})],
)
def test_stages_and_probability(prob, stages, acts):
    np.random.seed(0)
    augment = DenseO2OCopyBlend(prob=prob, stages=stages)
    for stage in Stage:
        augment.set_stage(stage)
        changed = 0
        for _ in range(200):
            inputs, samples = make_batch([[(0, 0, 20, 20)], []])
            _, samples = augment(inputs, samples)
            changed += len(samples[1].gt_instances)
        assert changed / 200 == pytest.approx(prob if stage in acts else 0, abs=0.11)


def test_acts_where_mixup_does_not():
    """Half of the batches are mixed; of the others, half have copies."""
    np.random.seed(0)
    counts = {}
    for _ in range(400):
        batch = make_batch([[(0, 0, 20, 20)], [(5, 5, 30, 25)]])
        for augment in (DenseO2OMixUp(), DenseO2OCopyBlend()):
            batch = augment(*batch)
        count = tuple(len(sample.gt_instances) for sample in batch[1])
        counts[count] = counts.get(count, 0) + 1
        assert count in ((2, 2), (3, 3), (1, 1))
    assert counts[2, 2] / 400 == pytest.approx(0.5, abs=0.08)
    assert counts[3, 3] / 400 == pytest.approx(0.25, abs=0.07)


def test_padding_counts_as_image_and_overwriting_gives_the_same():
    boxes = BOXES[0]
    results = []
    for overwrite in (False, True):
        np.random.seed(1)
        inputs, samples = make_batch([boxes, boxes])
        samples[0].set_metainfo({'img_shape': (40, 50)})
        before = inputs.clone()
        out, samples = DenseO2OCopyBlend(prob=1)(inputs, samples, overwrite=overwrite)
        assert (out is inputs) == overwrite
        assert torch.equal(inputs, before) != overwrite
        assert samples[0].img_shape == samples[0].pad_shape == (HEIGHT, WIDTH)
        results.append(out)
    assert torch.equal(*results)


def test_a_batch_without_large_objects_is_left_alone():
    inputs, samples = make_batch([[(0, 0, 9, 9)], []])
    out, samples = DenseO2OCopyBlend(prob=1)(inputs, samples)
    assert torch.equal(out, inputs)
    assert [len(sample.gt_instances) for sample in samples] == [1, 0]


@pytest.mark.parametrize('field', ['gt_instances.masks', 'gt_instances.keypoints', 'gt_sem_seg'])
def test_what_cannot_be_copied_is_refused_in_every_stage(field):
    inputs, samples = make_batch([[(0, 0, 20, 20)], []])
    values = {
        'gt_instances.masks': BitmapMasks(np.zeros((1, HEIGHT, WIDTH), np.uint8), HEIGHT, WIDTH),
        'gt_instances.keypoints': torch.zeros(1, 5, 2),
        'gt_sem_seg': PixelData(sem_seg=torch.zeros(1, HEIGHT, WIDTH)),
    }
    holder = samples[0].gt_instances if '.' in field else samples[0]
    setattr(holder, field.rsplit('.')[-1], values[field])
    augment = DenseO2OCopyBlend(prob=0)
    augment.set_stage(Stage.WARM_UP)
    with pytest.raises(ValueError, match=f'DenseO2OCopyBlend cannot copy {field} '):
        augment(inputs, samples)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"stages must be among \['warm-up'.*got \['late'\]"):
        DenseO2OCopyBlend(stages=('late',))
    with pytest.raises(ValueError, match='num_objects must be an integer of at least 1, got 0'):
        DenseO2OCopyBlend(num_objects=0)
    with pytest.raises(ValueError, match=r'context must be a pair .* got \(-1, 0\)'):
        DenseO2OCopyBlend(context=(-1, 0))


def test_multi_scale_comes_after_it_on_the_way_of_bytes():
    """Sizes matter to copy-blend: the batch is that of the augments one by one."""
    augments = [dict(type='DenseO2OCopyBlend', prob=1), dict(type='DenseO2OMultiScale')]
    preprocessor = DenseO2ODataPreprocessor([0], [255], batch_augments=augments)
    blend, scale = preprocessor.batch_augments
    scale.draw_size = lambda base_size: 96
    inputs, samples = make_batch(BOXES)
    inputs = (inputs * 255).to(torch.uint8)
    np.random.seed(2)
    batch = preprocessor(dict(inputs=inputs, data_samples=samples), training=True)
    np.random.seed(2)
    plain, _ = scale(*blend(inputs / 255, [s.clone() for s in make_batch(BOXES)[1]]))
    torch.testing.assert_close(batch['inputs'], plain)


def test_pixels_stay_on_their_device_and_boxes_on_the_host():
    """torch's "meta" device stands for a GPU: its pixels have no values that could be read."""
    batches = []
    for device in ('cpu', 'meta'):
        np.random.seed(0)
        inputs, samples = make_batch(BOXES)
        out, samples = DenseO2OCopyBlend(prob=1)(inputs.to(device), samples)
        assert out.device.type == device
        assert out.shape == inputs.shape
        batches.append(samples)
    for host, other in zip(*batches, strict=True):
        assert torch.equal(host.gt_instances.bboxes, other.gt_instances.bboxes)
        assert other.gt_instances.bboxes.device.type == 'cpu'
