"""DenseO2ODataPreprocessor gives the batch that mmdet's DetDataPreprocessor gives."""

import copy

import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from deim_mmdet.models.data_preprocessors import DenseO2ODataPreprocessor
from deim_mmdet.utils import Stage

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
    torch.testing.assert_close(ours['inputs'], theirs['inputs'])
    for expected, sample in zip(theirs['data_samples'], ours['data_samples'], strict=True):
        assert sample.metainfo == expected.metainfo
        for name in ('gt_instances', 'ignored_instances'):
            found, wanted = sample.get(name), expected.get(name)
            assert isinstance(found.bboxes, torch.Tensor)
            torch.testing.assert_close(found.bboxes, wanted.bboxes)
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
            preprocessor.batch_augments[1].sizes = [64 + 32 * (seed - 1)]
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
