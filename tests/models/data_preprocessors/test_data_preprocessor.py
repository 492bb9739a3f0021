"""DenseO2ODataPreprocessor gives the batch that mmdet's DetDataPreprocessor gives."""

import copy

from deim_mmdet.models.data_preprocessors import DenseO2ODataPreprocessor
from deim_mmdet.utils import Stage

import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

OPTIONS = dict(mean=[10, 20, 30], std=[50, 60, 255], bgr_to_rgb=True)
MIXUP = dict(type='DenseO2OMixUp', prob=1, ratio=(0.5, 0.5))
MULTI_SCALE = dict(type='DenseO2OMultiScale', base_size=64)


def make_data(sizes, dtype=torch.uint8):
    """Noise images and samples with as many objects as their number."""
    generator = torch.Generator().manual_seed(0)
    data = {'inputs': [], 'data_samples': []}
    for number, (height, width) in enumerate(sizes):
        image = torch.randint(0, 256, (3, height, width), generator=generator)
        data['inputs'].append(image.to(dtype))
        sample = DetDataSample(metainfo={'img_shape': (height, width), 'img_id': number})
        for name in ('gt_instances', 'ignored_instances'):
            boxes = torch.rand(number, 4, generator=generator) * 32
            objects = InstanceData(bboxes=HorizontalBoxes(boxes), labels=torch.arange(number))
            setattr(sample, name, objects)
        data['data_samples'].append(sample)
    return data


def both(data, stage=Stage.DENSE, training=True, **options):
    """Batches of mmdet's preprocessor and of ours for the same draws."""
    batches = []
    for kind in (DetDataPreprocessor, DenseO2ODataPreprocessor):
        preprocessor = kind(**{**OPTIONS, **options})
        for augment in preprocessor.batch_augments or ():
            getattr(augment, 'set_stage', id)(stage)
        np.random.seed(0)
        batches.append(preprocessor(copy.deepcopy(data), training))
    return batches


def assert_same(theirs, ours):
    assert ours['inputs'].dtype == torch.float32
    assert torch.equal(ours['inputs'], theirs['inputs'])
    for expected, sample in zip(theirs['data_samples'], ours['data_samples'], strict=True):
        assert sample.metainfo == expected.metainfo
        for name in ('gt_instances', 'ignored_instances'):
            found, wanted = sample.get(name), expected.get(name)
            assert isinstance(found.bboxes, torch.Tensor)
            assert torch.equal(found.bboxes, wanted.bboxes)
            assert torch.equal(found.labels, wanted.labels)


@pytest.mark.parametrize('stage', list(Stage))
@pytest.mark.parametrize(
    'augments', [None, [MULTI_SCALE], [MIXUP]], ids=['none', 'multi-scale', 'mixup']
)
def test_same_batch_in_training(augments, stage):
    data = make_data([(64, 96)] * 4)
    assert_same(*both(data, stage, batch_augments=augments))


def test_mixup_and_multi_scale_together():
    """The order of the two draws differs, so both are made certain."""
    sizes = set()
    for seed in range(6):
        batches = []
        for kind in (DetDataPreprocessor, DenseO2ODataPreprocessor):
            preprocessor = kind(**OPTIONS, batch_augments=[MIXUP, MULTI_SCALE])
            preprocessor.batch_augments[1].draw_size = lambda _: 64 + 32 * (seed - 1)  # noqa: B023
            batches.append(preprocessor(make_data([(64, 64)] * 3), training=True))
        assert_same(*batches)
        sizes.add(batches[1]['inputs'].shape[-1])
    assert sizes == {32, 64, 96, 128, 160, 192}


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    ('sizes', 'dtype', 'options'),
    [
        ([(64, 64), (64, 96)], torch.uint8, {}),
        ([(64, 64)] * 2, torch.float32, {}),
        ([(64, 64)] * 2, torch.uint8, {'pad_size_divisor': 48}),
        ([(64, 64)] * 2, torch.uint8, {'pad_size_divisor': 32}),
        ([(64, 64)] * 2, torch.uint8, {'bgr_to_rgb': False}),
        ([(64, 64)] * 2, torch.uint8, {'mean': None, 'std': None}),
    ],
    ids=['sizes', 'floats', 'padding', 'no-padding', 'bgr', 'raw'],
)
def test_same_batch_of_any_images(sizes, dtype, options, training):
    assert_same(*both(make_data(sizes, dtype), training=training, **options))


def test_augments_of_other_packages_act_on_normalised_images():
    """Padding with zeros before the normalisation would give another border."""
    pad = dict(type='BatchFixedSizePad', size=(96, 96))
    theirs, ours = both(make_data([(64, 64)] * 2), batch_augments=[MULTI_SCALE, pad])
    assert_same(theirs, ours)
    assert ours['inputs'][0, 0, -1, -1] == 0


def test_images_of_the_loader_are_not_changed():
    data = make_data([(64, 64)] * 3)
    originals = [image.clone() for image in data['inputs']]
    preprocessor = DenseO2ODataPreprocessor(**OPTIONS, batch_augments=[MIXUP, MULTI_SCALE])
    preprocessor({**data}, training=True)
    assert all(map(torch.equal, data['inputs'], originals))


def test_is_registered_and_takes_images_alone():
    preprocessor = MODELS.build(dict(type='DenseO2ODataPreprocessor', **OPTIONS))
    images = make_data([(64, 64)] * 2)['inputs']
    batch = preprocessor({'inputs': images, 'data_samples': None})
    expected = (images[1][[2, 1, 0]] - torch.tensor([10.0, 20, 30]).view(3, 1, 1)) / torch.tensor(
        [50.0, 60, 255]
    ).view(3, 1, 1)
    torch.testing.assert_close(batch['inputs'][1], expected)


@pytest.mark.parametrize('kind', [DetDataPreprocessor, DenseO2ODataPreprocessor])
@pytest.mark.parametrize(
    ('sizes', 'pad_mask'),
    [([(64, 64)] * 3, False), ([(64, 64)] * 3, True), ([(64, 32), (32, 64)], True)],
    ids=['bytes', 'pad-mask', 'sizes'],
)
def test_masks_follow_the_pixels_through_both_augments(kind, sizes, pad_mask):
    """An image shows its masks, so that a mixture shows those of both."""
    scales = set()
    for seed in range(8):
        data = make_data(sizes)
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
            masks = np.random.default_rng(seed).integers(0, 2, (2, *image.shape[1:]), np.uint8)
            image[:] = torch.from_numpy(masks.max(0)) * 255
            sample.gt_instances = InstanceData(
                bboxes=torch.rand(2, 4),
                labels=torch.arange(2),
                masks=BitmapMasks(masks, *image.shape[1:]),
            )
        options = dict(mean=[0] * 3, std=[255] * 3, bgr_to_rgb=True, pad_mask=pad_mask)
        preprocessor = kind(**options, batch_augments=[MIXUP, MULTI_SCALE])
        preprocessor.batch_augments[1].draw_size = lambda _: np.random.choice([32, 64, 96, 128])
        np.random.seed(seed)
        batch = preprocessor(data, training=True)
        for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
            masks = sample.gt_instances.masks.to_ndarray()
            assert len(masks) == len(sample.gt_instances.bboxes) == 4
            assert np.array_equal(masks.any(0), image[0].numpy() > 0)
        scales.add(batch['inputs'].shape[-1])
    assert len(scales) > 2


CHANNELS = {
    'grey': lambda image: image[:1],
    'grey and alpha': lambda image: torch.cat([image[:1], 255 - image[:1]]),
    'alpha': lambda image: torch.cat([image, 255 - image[:1]]),
    '16 bits': lambda image: (image.to(torch.int32) * 256 + 255 - image).to(torch.uint16),
    'grey of 16 bits': lambda image: (image[:1].to(torch.int32) * 256 + 77).to(torch.uint16),
}


@pytest.mark.parametrize('stacked', [False, True])
@pytest.mark.parametrize(
    'options',
    [{}, {'bgr_to_rgb': False, 'pad_size_divisor': 48}, {'mean': None, 'std': None}],
    ids=['bytes', 'padded', 'raw'],
)
@pytest.mark.parametrize('form', CHANNELS)
def test_arrays_of_any_channels_are_as_pictures(form, options, stacked):
    images = make_data([(64, 64)] * 2)['inputs']
    if form.startswith('grey'):
        images = [image[:1].repeat(3, 1, 1) for image in images]
    preprocessor = DenseO2ODataPreprocessor(**{**OPTIONS, **options})
    batches = []
    for inputs in (images, [CHANNELS[form](image) for image in images]):
        inputs = torch.stack(inputs) if stacked else inputs
        batches.append(preprocessor({'inputs': inputs, 'data_samples': None})['inputs'])
    assert torch.equal(*batches)


def test_floats_of_one_channel_are_grey():
    images = make_data([(64, 64)], torch.float32)['inputs']
    grey = images[0][:1]
    preprocessor = DenseO2ODataPreprocessor(**OPTIONS)
    batch = preprocessor({'inputs': [grey], 'data_samples': None})
    expected = preprocessor({'inputs': [grey.repeat(3, 1, 1)], 'data_samples': None})
    assert torch.equal(batch['inputs'], expected['inputs'])


def test_other_numbers_of_channels_are_refused_or_left_to_a_model_of_them():
    images = [torch.zeros(5, 32, 32, dtype=torch.uint8)]
    with pytest.raises(ValueError, match=r'takes images of 1 \(grey\), 3 or 4 .* got 5: choose'):
        DenseO2ODataPreprocessor(**OPTIONS)({'inputs': images, 'data_samples': None})
    with pytest.raises(ValueError, match=r'have 5 channels, and mean and std .* have 4: .*in_chan'):
        DenseO2ODataPreprocessor([0] * 4, [1] * 4)({'inputs': images, 'data_samples': None})
    with pytest.raises(ValueError, match='bgr_to_rgb is for three channels'):
        DenseO2ODataPreprocessor([0] * 4, [1] * 4, bgr_to_rgb=True)
    raw = DenseO2ODataPreprocessor()
    assert raw({'inputs': images, 'data_samples': None})['inputs'].shape == (1, 5, 32, 32)
    of_grey = DenseO2ODataPreprocessor(mean=[1], std=[2])
    batch = of_grey({'inputs': [images[0][:1]], 'data_samples': None})
    assert torch.equal(batch['inputs'], torch.full((1, 1, 32, 32), -0.5))


def test_a_deviation_of_zero_is_refused():
    with pytest.raises(ValueError, match='std must be positive'):
        MODELS.build(dict(type='DenseO2ODataPreprocessor', mean=[0] * 4, std=[1, 1, 1, 0]))


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 6])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize('layout', ['list', 'planes', 'pixels'])
def test_any_channels_are_normalised_by_their_own_mean_and_deviation(channels, dtype, layout):
    top = 256 if dtype == torch.uint8 else 65536
    values = np.random.default_rng(0).integers(top, size=(2, channels, 32, 64))
    images = torch.from_numpy(values.astype(np.uint16)).to(dtype)
    mean, std = np.arange(1.0, 1 + channels) * 10, np.arange(2.0, 2 + channels) * 100
    preprocessor = DenseO2ODataPreprocessor(mean, std, keep_values=True)
    inputs = [*images] if layout == 'list' else images
    if layout == 'pixels':
        inputs = torch.from_numpy(images.numpy().transpose(0, 2, 3, 1).copy()).permute(0, 3, 1, 2)
    batch = preprocessor({'inputs': inputs, 'data_samples': None})['inputs']
    assert batch.dtype == torch.float32
    expected = (values - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(batch.double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
