import copy

from deim_mmdet.models.data_preprocessors import DenseO2OMixUp, DenseO2OMultiScale
from deim_mmdet.models.data_preprocessors.multi_scale import training_sizes
from deim_mmdet.utils import Stage

import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor, RPNHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes, get_box_tensor
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData, PixelData


def make_batch(counts, height=64, width=64, box_type=torch.as_tensor):
    """Noise images and samples with ``counts`` objects each and one ignored object."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number, count in enumerate(counts):
        sample = DetDataSample(
            metainfo={
                'img_shape': (height, width),
                'pad_shape': (height, width),
                'batch_input_shape': (height, width),
                'img_id': number,
            }
        )
        corner = torch.rand(count, 2, generator=generator) * 32
        boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 32], 1)
        sample.gt_instances = InstanceData(
            bboxes=box_type(boxes), labels=torch.full((count,), number)
        )
        sample.ignored_instances = InstanceData(
            bboxes=box_type(torch.tensor([[0.0, 0, 8, 16]])), labels=torch.full((1,), -number)
        )
        samples.append(sample)
    return torch.rand(len(counts), 3, height, width, generator=generator), samples


def rectangles(kind, boxes, height, width):
    """Masks of the pixels within boxes (N, 4) on an image of ``height`` x ``width`` pixels."""
    if kind is PolygonMasks:
        polygons = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2], float)] for x1, y1, x2, y2 in boxes]
        return PolygonMasks(polygons, height, width)
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    return BitmapMasks(masks, height, width)


def to_size(size):
    """Multi-scale that makes the longer side of a batch ``size``."""
    augment = DenseO2OMultiScale()
    augment.draw_size = lambda base_size: size
    return augment


# Of a sample each; each fills a part of the image.
RECTANGLES = [
    [(8, 4, 40, 60), (0, 0, 64, 32), (50, 50, 64, 64)],
    [(0, 10, 20, 30), (31, 33, 35, 37), (16, 0, 48, 64)],
]


def make_masked_batch(kind):
    """A batch of 64 x 64 pixels with masks, of which the first fills the upper half only."""
    inputs, samples = make_batch([3, 3])
    for sample, boxes, height in zip(samples, RECTANGLES, (32, 64), strict=True):
        sample.gt_instances.masks = rectangles(
            kind, np.clip(boxes, 0, [64, height] * 2), height, 64
        )
        sample.ignored_instances.masks = rectangles(kind, [(0, 0, 8, 16)], height, 64)
    return inputs, samples


class TestMixUp:
    def test_blends_each_image_with_the_previous_and_keeps_objects_of_both(self):
        inputs, samples = make_batch([2, 0, 3])
        originals, boxes = inputs.clone(), [s.gt_instances.bboxes for s in samples]
        np.random.seed(0)
        share = np.random.RandomState(0).uniform(size=2)[1] * 0.1 + 0.45
        mixed, samples = DenseO2OMixUp(prob=1)(inputs, samples)
        for image, previous in ((0, 2), (1, 0), (2, 1)):
            for row in range(0, 64, 7):
                expected = (
                    share * originals[image, :, row] + (1 - share) * originals[previous, :, row]
                )
                assert torch.allclose(mixed[image, :, row], expected, atol=1e-6)
            objects = samples[image].gt_instances
            assert torch.equal(objects.bboxes, torch.cat([boxes[image], boxes[previous]]))
            assert set(objects.labels.tolist()) <= {image, previous}
            assert samples[image].ignored_instances.labels.tolist() == [-image, -previous]
            assert samples[image].img_id == image
        assert torch.equal(inputs, originals)

    def test_share_and_probability(self):
        np.random.seed(0)
        inputs = torch.zeros(2, 3, 4, 4)
        inputs[0] = 1
        shares = []
        for _ in range(1000):
            out, _ = DenseO2OMixUp()(inputs, make_batch([1, 1])[1])
            shares.append(out[0, 0, 0, 0].item())
        mixed = [share for share in shares if share < 1]
        assert len(mixed) / 1000 == pytest.approx(0.5, abs=0.07)
        assert 0.45 <= min(mixed) < 0.455
        assert 0.545 < max(mixed) <= 0.55
        assert np.mean(mixed) == pytest.approx(0.5, abs=0.006)

    @pytest.mark.parametrize('stage', list(Stage))
    def test_acts_in_the_dense_stage_only(self, stage):
        augment = DenseO2OMixUp(prob=1)
        augment.set_stage(stage)
        inputs, samples = make_batch([1, 2])
        out, samples = augment(inputs, samples)
        assert torch.equal(out, inputs) == (stage is not Stage.DENSE)
        assert [len(s.gt_instances) for s in samples] == (
            [3, 3] if stage is Stage.DENSE else [1, 2]
        )

    def test_batch_without_objects(self):
        _, samples = DenseO2OMixUp(prob=1)(*make_batch([0, 0]))
        assert [s.gt_instances.bboxes.shape for s in samples] == [(0, 4), (0, 4)]

    def test_batch_of_one_is_left_alone(self):
        inputs, samples = make_batch([2])
        samples[0].set_metainfo({'img_shape': (48, 64)})
        before = copy.deepcopy(samples[0])
        out, samples = DenseO2OMixUp(prob=1)(inputs, samples)
        assert torch.equal(out, inputs)
        assert samples[0].metainfo == before.metainfo
        assert torch.equal(samples[0].gt_instances.bboxes, before.gt_instances.bboxes)
        assert len(samples[0].ignored_instances) == 1

    def test_heads_with_anchors_use_those_in_the_padding(self):
        """Objects of the image before may lie there."""
        inputs, samples = make_batch([1, 1])
        samples[0].set_metainfo({'img_shape': (32, 64), 'pad_shape': (32, 64)})
        _, samples = DenseO2OMixUp(prob=1)(inputs, samples)
        anchors = dict(type='AnchorGenerator', scales=[2], ratios=[1.0], strides=[8])
        head = RPNHead(4, feat_channels=4, anchor_generator=anchors)
        metas = [sample.metainfo for sample in samples]
        _, valid = head.get_anchors([(8, 8)], metas, device='cpu')
        assert [flags[0].sum().item() for flags in valid] == [64, 64]

    @pytest.mark.parametrize('kind', [BitmapMasks, PolygonMasks])
    def test_masks_of_both_at_the_size_of_the_batch(self, kind):
        inputs, samples = make_masked_batch(kind)
        first, second = (sample.gt_instances.masks.to_ndarray() for sample in samples)
        first = np.pad(first, [(0, 0), (0, 32), (0, 0)])
        _, samples = DenseO2OMixUp(prob=1)(inputs, samples)
        for sample, order in zip(samples, ([first, second], [second, first]), strict=True):
            masks = sample.gt_instances.masks
            assert isinstance(masks, kind)
            assert np.array_equal(masks.to_ndarray(), np.concatenate(order))
            assert (
                sample.ignored_instances.masks.to_ndarray().sum(axis=(1, 2)).tolist() == [128] * 2
            )

    @pytest.mark.parametrize('stage', list(Stage))
    def test_what_cannot_be_mixed_is_refused_from_the_start(self, stage):
        augment = DenseO2OMixUp(prob=0.01)
        augment.set_stage(stage)
        for name, message in [
            ('gt_sem_seg', r'DenseO2OMixUp cannot mix gt_sem_seg \(PixelData\).*with_seg=False'),
            ('masks', r'DenseO2OMixUp cannot mix gt_instances\.masks \(Tensor\).*batch_augments'),
        ]:
            inputs, samples = make_batch([1, 2])
            if name == 'masks':
                samples[1].gt_instances.masks = torch.zeros(2, 64, 64)
            else:
                samples[1].gt_sem_seg = PixelData(sem_seg=torch.zeros(1, 64, 64))
            with pytest.raises(ValueError, match=message):
                augment(inputs, samples)

    def test_box_objects_stay_box_objects(self):
        _, samples = DenseO2OMixUp(prob=1)(*make_batch([1, 2], box_type=HorizontalBoxes))
        assert isinstance(samples[0].gt_instances.bboxes, HorizontalBoxes)
        assert len(samples[0].gt_instances) == 3

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r'prob must be a number in \[0, 1\].*got -1'):
            DenseO2OMixUp(prob=-1)
        with pytest.raises(ValueError, match=r'ratio must be a pair.*got 0\.5'):
            DenseO2OMixUp(ratio=0.5)
        assert 'prob=0.5, ratio=(0.45, 0.55), stage=dense' in repr(DenseO2OMixUp())


class TestMultiScale:
    def test_sizes(self):
        assert training_sizes(640, 4) == [*range(480, 640, 32), *[640] * 4, *range(672, 801, 32)]
        assert training_sizes(640, 20).count(640) == 20
        assert training_sizes(320, 1) == [224, 256, 288, 320, 352, 384]
        assert training_sizes(640, None) == [640]

    def test_sizes_are_drawn_by_their_weight(self):
        np.random.seed(0)
        augment = DenseO2OMultiScale(base_size=128, base_size_repeat=3)
        inputs, samples = make_batch([0], 128, 128)
        drawn = [augment(inputs, copy.deepcopy(samples))[0].shape[-1] for _ in range(1000)]
        expected = {96: 0.2, 128: 0.6, 160: 0.2}
        assert set(drawn) == set(expected)
        for size, share in expected.items():
            assert drawn.count(size) / 1000 == pytest.approx(share, abs=0.065)

    @pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
    def test_bytes_are_picked_where_floats_are(self, layout):
        """At every size of the published recipes; torch's are off by one in 5 of 736 columns."""
        inputs = torch.randint(0, 256, (2, 3, 640, 640), dtype=torch.uint8)
        inputs = inputs.contiguous(memory_format=layout)
        for size in training_sizes(640, 1):
            augment = to_size(size)
            _, samples = make_batch([1], 640, 640)
            of_bytes, _ = augment(inputs, copy.deepcopy(samples))
            of_floats, _ = augment(inputs.float(), samples)
            assert of_bytes.dtype == torch.uint8
            assert of_bytes.is_contiguous(memory_format=layout)
            picked = torch.arange(size) * 640 // size
            assert torch.equal(of_bytes, inputs[..., picked[:, None], picked])
            assert (of_bytes == of_floats).float().mean() > 0.98

    @pytest.mark.parametrize('box_type', [torch.as_tensor, HorizontalBoxes])
    @pytest.mark.parametrize(('height', 'width'), [(128, 128), (128, 192)])
    def test_nearest_pixels_and_boxes_at_one_scale(self, height, width, box_type):
        for seed in range(6):
            inputs, samples = make_batch([2, 0], height, width, box_type)
            before = copy.deepcopy(samples)
            np.random.seed(seed)
            out, samples = DenseO2OMultiScale(base_size=128, base_size_repeat=1)(inputs, samples)
            new_height, new_width = out.shape[-2:]
            assert new_height % 32 == new_width % 32 == 0
            y_scale, x_scale = new_height / height, new_width / width
            for row in range(0, new_height, 9):
                for column in range(0, new_width, 9):
                    source = inputs[:, :, int(row / y_scale), int(column / x_scale)]
                    assert torch.equal(out[:, :, row, column], source)
            for sample, old in zip(samples, before, strict=True):
                assert sample.batch_input_shape == (new_height, new_width)
                assert sample.img_shape == sample.pad_shape == (new_height, new_width)
                for name in ('gt_instances', 'ignored_instances'):
                    new_boxes = get_box_tensor(sample.get(name).bboxes).tolist()
                    old_boxes = get_box_tensor(old.get(name).bboxes).tolist()
                    for (x1, y1, x2, y2), box in zip(old_boxes, new_boxes, strict=True):
                        expected = [x1 * x_scale, y1 * y_scale, x2 * x_scale, y2 * y_scale]
                        assert box == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize('kind', [BitmapMasks, PolygonMasks])
    @pytest.mark.parametrize('size', [32, 96, 128])
    def test_masks_cover_the_same_part_of_the_new_image(self, kind, size):
        inputs, samples = make_masked_batch(kind)
        augment = to_size(size)
        _, samples = augment(inputs, samples)
        for sample, height in zip(samples, (32, 64), strict=True):
            for objects in (sample.gt_instances, sample.ignored_instances):
                assert (objects.masks.height, objects.masks.width) == (size, size)
            found = sample.gt_instances.masks.to_ndarray()
            boxes = np.clip(RECTANGLES[sample.img_id], 0, [64, height] * 2)
            for mask, (x1, y1, x2, y2) in zip(found, boxes, strict=True):
                # A pixel is in it if the point of the old image that it shows is.
                points = (np.arange(size) + 0.5) * 64 / size
                rows, columns = (y1 < points) & (points < y2), (x1 < points) & (points < x2)
                # Rounding may move each of the four edges by one pixel.
                differing = (mask != (rows[:, None] & columns)).sum()
                assert differing <= 2 * (rows.sum() + columns.sum() + 2)
                share = (x2 - x1) * (y2 - y1) / 64**2
                assert mask.mean() == pytest.approx(share, abs=2 * 64 / size / 64)

    @pytest.mark.parametrize('dtype', [torch.uint8, torch.int64])
    def test_bitmaps_and_semantic_maps_follow_every_pixel(self, dtype):
        """Also those of images that fill a part of the batch only."""
        for size in (224, 256, 288, 352, 384):
            inputs = torch.randint(0, 2, (2, 3, 320, 320), dtype=torch.uint8)
            _, samples = make_batch([3, 3], 320, 320)
            for sample, image, height in zip(samples, inputs, (320, 123), strict=True):
                part = image[:, :height].clone()
                sample.gt_instances.masks = BitmapMasks(part.numpy(), height, 320)
                maps = PixelData(sem_seg=part[:1].to(dtype), metainfo={'ignore_index': 7})
                sample.gt_sem_seg = maps
                sample.set_metainfo({'img_shape': (height, 320)})
                image[:, height:] = 0
            augment = to_size(size)
            out, samples = augment(inputs, samples)
            for sample, image in zip(samples, out, strict=True):
                assert np.array_equal(sample.gt_instances.masks.to_ndarray(), image.numpy())
                found, height = sample.gt_sem_seg.sem_seg, sample.img_shape[0]
                assert found.dtype == dtype
                assert found.shape == (1, height, size)
                # The last row may be of what is beyond the picture.
                assert torch.equal(found[0, :-1], image[0, : height - 1].to(dtype))
                assert sample.gt_sem_seg.ignore_index == 7
            assert torch.equal(samples[0].gt_sem_seg.sem_seg[0], out[0, 0].to(dtype))

    @pytest.mark.parametrize('dtype', [torch.float32, torch.int64])
    @pytest.mark.parametrize('visibility', [False, True])
    def test_key_points_follow_the_corners(self, visibility, dtype):
        inputs, samples = make_batch([2, 0], 128, 256)
        for sample in samples:
            boxes = sample.gt_instances.bboxes.round()
            points = boxes.reshape(-1, 2, 2)
            if visibility:
                points = torch.cat([points, torch.full((len(points), 2, 1), 2)], -1)
            sample.gt_instances.bboxes = boxes
            sample.gt_instances.keypoints = points.to(dtype)
            sample.gt_instances.keypoints_visible = torch.ones(len(points), 2)
        augment = to_size(96)
        _, samples = augment(inputs, samples)
        for sample in samples:
            objects = sample.gt_instances
            corners = objects.bboxes.reshape(-1, 2, 2)
            torch.testing.assert_close(objects.keypoints[..., :2], corners)
            assert (objects.keypoints[..., 2:] == 2).all()
            assert (objects.keypoints_visible == 1).all()

    def test_single_values_of_objects_stay_and_proposals_are_boxes(self):
        inputs, samples = make_batch([2], 128, 128)
        before = samples[0].gt_instances.bboxes
        samples[0].gt_instances.instances_ids = torch.tensor([5, 9])
        samples[0].proposals = InstanceData(bboxes=before.clone(), scores=torch.ones(2))
        augment = to_size(192)
        augment(inputs, samples)
        assert samples[0].gt_instances.instances_ids.tolist() == [5, 9]
        assert torch.equal(samples[0].proposals.bboxes, before * 1.5)
        assert samples[0].proposals.scores.tolist() == [1, 1]

    @pytest.mark.parametrize(
        ('field', 'value'),
        [
            ('masks', torch.zeros(2, 128, 128)),
            ('polygons', torch.zeros(2, 8)),
            ('areas', torch.zeros(2)),
            ('keypoints', np.zeros((2, 5, 2))),
            ('keypoints', torch.zeros(2, 5, 4)),
            ('bboxes', torch.zeros(2, 5)),
        ],
    )
    def test_what_cannot_be_resized_is_refused(self, field, value):
        inputs, samples = make_batch([2], 128, 128)
        samples[0].gt_instances.set_field(value, field)
        augment = to_size(96)
        with pytest.raises(
            ValueError, match=rf'DenseO2OMultiScale cannot resize gt_instances\.{field} .*: take'
        ):
            augment(inputs, samples)

    @pytest.mark.parametrize(
        ('value', 'name'),
        [(torch.zeros(128, 128), 'depth'), (PixelData(map=np.zeros((1, 128, 128))), r'depth\.map')],
    )
    def test_unknown_fields_of_a_sample_are_refused(self, value, name):
        inputs, samples = make_batch([2], 128, 128)
        samples[0].depth = value
        augment = to_size(96)
        with pytest.raises(ValueError, match=f'DenseO2OMultiScale cannot resize {name} '):
            augment(inputs, samples)

    def test_boxes_follow_the_pixels(self):
        for seed in range(10):
            inputs, samples = make_batch([1, 1, 1], 160, 160)
            inputs.zero_()
            for number, sample in enumerate(samples):
                box = torch.tensor([[32.0, 16 + 8 * number, 96, 128]])
                sample.gt_instances.bboxes = box
                x1, y1, x2, y2 = box[0].int().tolist()
                inputs[number, number, y1:y2, x1:x2] = 1
            np.random.seed(seed)
            for augment in (DenseO2OMixUp(), DenseO2OMultiScale(base_size=160)):
                inputs, samples = augment(inputs, samples)
            for image, sample in enumerate(samples):
                objects = sample.gt_instances
                for label, box in zip(objects.labels, objects.bboxes.tolist(), strict=True):
                    rows, columns = torch.nonzero(inputs[image, label] > 0.4, as_tuple=True)
                    hull = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    assert box == pytest.approx([float(end) for end in hull], abs=1)

    @pytest.mark.parametrize('stage', list(Stage))
    def test_acts_in_all_stages_but_no_augmentation(self, stage):
        augment = DenseO2OMultiScale(base_size=128, base_size_repeat=1)
        augment.set_stage(stage)
        np.random.seed(0)
        sizes = {augment(*make_batch([1], 128, 128))[0].shape[-1] for _ in range(40)}
        assert sizes == ({128} if stage is Stage.NO_AUG else {96, 128, 160})

    @pytest.mark.parametrize(('height', 'width'), [(320, 320), (160, 320), (320, 192)])
    def test_base_size_is_the_longer_side_of_the_batch(self, height, width):
        seen = set()
        augment = DenseO2OMultiScale()
        for _ in range(60):
            seen.add(augment(torch.zeros(1, 3, height, width), [])[0].shape[-2:])
        expected = {
            tuple(max(32, round(side * size / 320 / 32) * 32) for side in (height, width))
            for size in (224, 256, 288, 320, 352, 384)
        }
        assert seen == expected

    def test_size_of_the_input_may_be_stated(self):
        """As configs of version 0.1 do; half of its base size, the input stays at half of it."""
        augment = DenseO2OMultiScale(base_size=640, base_size_repeat=None)
        assert augment(torch.zeros(1, 3, 320, 320), [])[0].shape == (1, 3, 320, 320)
        augment.draw_size = lambda base_size: {640: 480}[base_size]
        assert augment(torch.zeros(1, 3, 320, 160), [])[0].shape == (1, 3, 256, 128)

    def test_fixed_size(self):
        augment = DenseO2OMultiScale(base_size=128, base_size_repeat=None)
        assert {augment(*make_batch([1], 128, 128))[0].shape[-1] for _ in range(20)} == {128}

    def test_images_that_differ_through_padding(self):
        """An image that fills half of the batch's input still does at the new size."""
        inputs, samples = make_batch([1, 1], 128, 128)
        samples[1].set_metainfo({'img_shape': (64, 128)})
        np.random.seed(3)
        out, samples = DenseO2OMultiScale(base_size=128, base_size_repeat=1)(inputs, samples)
        size = out.shape[-1]
        assert size != 128
        assert samples[1].img_shape == (size // 2, size)
        assert samples[0].batch_input_shape == samples[1].batch_input_shape == (size, size)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match='base_size must be divisible by 32, got 650'):
            DenseO2OMultiScale(base_size=650)
        with pytest.raises(ValueError, match=r'base_size must be an integer.*640\.0'):
            DenseO2OMultiScale(base_size=640.0)
        with pytest.raises(ValueError, match=r'base_size_repeat must be an integer .* got 0'):
            DenseO2OMultiScale(base_size_repeat=0)
        assert 'base_size=None, base_size_repeat=4, stage=dense' in repr(DenseO2OMultiScale())


def test_in_mmdets_preprocessor_with_samples_without_ignored_objects():
    preprocessor = DetDataPreprocessor(
        mean=[0, 0, 0],
        std=[255, 255, 255],
        bgr_to_rgb=True,
        batch_augments=[
            {'type': 'DenseO2OMixUp', 'prob': 1},
            {'type': 'DenseO2OMultiScale', 'base_size': 64, 'base_size_repeat': 1},
        ],
    )
    _, samples = make_batch([2, 1], box_type=HorizontalBoxes)
    for sample in samples:
        sample.ignored_instances = InstanceData()
    images = [torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (0, 255)]
    data = {'inputs': images, 'data_samples': samples}
    result = preprocessor(copy.deepcopy(data), training=True)
    assert [len(s.gt_instances) for s in result['data_samples']] == [3, 3]
    assert result['inputs'][0].mean() == pytest.approx(0.5, abs=0.0501)
    # Evaluation leaves the batch alone.
    result = preprocessor(copy.deepcopy(data), training=False)
    assert [len(s.gt_instances) for s in result['data_samples']] == [2, 1]
