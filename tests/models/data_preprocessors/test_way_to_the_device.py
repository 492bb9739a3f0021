"""The batch goes to the device in one piece, in the layout that it has."""

import copy

from deim_mmdet.datasets import stack_images
from deim_mmdet.models.data_preprocessors import DenseO2ODataPreprocessor

import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData
from torch.utils._python_dispatch import TorchDispatchMode

MIXUP = dict(type='DenseO2OMixUp', prob=1, ratio=(0.5, 0.5))
MULTI_SCALE = dict(type='DenseO2OMultiScale', base_size_repeat=1)
DEVICES = [
    'cpu',
    pytest.param(
        'cuda',
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no such device'),
    ),
]


def make_data(count=4, size=(64, 96)):
    """Noise images, pixels in memory, and samples with as many objects as their number."""
    random = np.random.default_rng(0)
    data = dict(inputs=[], data_samples=[])
    for number in range(count):
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        data['inputs'].append(torch.from_numpy(pixels).permute(2, 0, 1))
        sample = DetDataSample(metainfo=dict(img_shape=size))
        boxes = torch.from_numpy(random.random((number, 4), dtype=np.float32) * 32)
        for name in ('gt_instances', 'ignored_instances'):
            objects = InstanceData(bboxes=HorizontalBoxes(boxes), labels=torch.arange(number))
            setattr(sample, name, objects)
        data['data_samples'].append(sample)
    return data


def in_form(data, form):
    """The same batch as one of the ways to make it hands it over."""
    layout, stacks = form.split()
    if layout == 'planes':
        data = {**data, 'inputs': [image.contiguous() for image in data['inputs']]}
    return (
        data
        if stacks == 'listed'
        else stack_images(
            [dict(inputs=i, data_samples=s) for i, s in zip(*data.values(), strict=True)]
        )
    )


def preprocess(kind, data, device='cpu', seed=0, training=True, **options):
    preprocessor = kind(**options).to(device)
    for augment in preprocessor.batch_augments or ():
        if hasattr(augment, 'set_step_seed'):
            augment.set_step_seed(seed)
    np.random.seed(seed)
    return preprocessor(copy.deepcopy(data), training)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    'form', ['pixels listed', 'pixels stacked', 'planes listed', 'planes stacked']
)
@pytest.mark.parametrize(
    'options',
    [
        dict(mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True),
        dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
        dict(mean=[0, 5, 0], std=[1, 255, 3], bgr_to_rgb=False),
        dict(mean=[10], std=[7], rgb_to_bgr=True),
    ],
    ids=['plain', 'mean', 'channels', 'one number'],
)  # fmt: skip
@pytest.mark.parametrize(
    'augments', [None, [MULTI_SCALE], [MIXUP]], ids=['none', 'multi-scale', 'mixup']
)
def test_batch_is_mmdets_and_stays_in_its_layout(form, options, augments, device):
    data = make_data()
    sizes = set()
    for seed in range(3):
        arguments = dict(options, batch_augments=augments, seed=seed)
        planes = in_form(data, 'planes listed')
        expected = preprocess(DetDataPreprocessor, planes, **arguments)
        found = preprocess(DenseO2ODataPreprocessor, in_form(data, form), device, **arguments)
        assert torch.equal(found['inputs'].cpu(), expected['inputs'])
        pixels = form.startswith('pixels')
        layout = torch.channels_last if pixels else torch.contiguous_format
        assert found['inputs'].is_contiguous(memory_format=layout)
        for ours, theirs in zip(found['data_samples'], expected['data_samples'], strict=True):
            assert ours.metainfo == theirs.metainfo
            for name in ('gt_instances', 'ignored_instances'):
                assert ours.get(name).bboxes.device.type == device
                for field in ('bboxes', 'labels'):
                    assert torch.equal(ours.get(name)[field].cpu(), theirs.get(name)[field])
        sizes.add(found['inputs'].shape[2:])
    assert len(sizes) == (2 if augments == [MULTI_SCALE] else 1)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('mean', [[0, 0, 0], [10, 20, 30]])
def test_devices_normalise_as_the_host_does(layout, mean):
    """What a GPU computes, here on the CPU."""
    preprocessor = DenseO2ODataPreprocessor(mean=mean, std=[50, 60, 255], bgr_to_rgb=True)
    images = torch.stack(make_data()['inputs']).contiguous(memory_format=layout)
    expected = (images.flip(1).float() - preprocessor.mean) / preprocessor.std
    for found in (preprocessor._by_batch(images), preprocessor._by_rows(images)):
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('augments', [None, [MIXUP]], ids=['none', 'mixup'])
@pytest.mark.parametrize('form', ['pixels stacked', 'planes listed'])
@pytest.mark.parametrize(('wanted', 'enabled'), [(True, True), (True, False), (False, True)])
def test_autocast_gets_images_in_its_type(form, augments, wanted, enabled, monkeypatch):
    """They are what the first convolution would make of the normalised and mixed images."""
    monkeypatch.setattr(DenseO2ODataPreprocessor, 'in_autocast_type', wanted)
    options = dict(mean=[10, 20, 30], std=[50, 60, 255], bgr_to_rgb=True, batch_augments=augments)
    data = in_form(make_data(), form)
    expected = preprocess(DetDataPreprocessor, in_form(make_data(), 'planes listed'), **options)
    with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
        found = preprocess(DenseO2ODataPreprocessor, data, **options)['inputs']
    dtype = torch.bfloat16 if wanted and enabled else torch.float32
    assert found.dtype == dtype
    assert torch.equal(found, expected['inputs'].to(dtype))
    layout = torch.channels_last if form.startswith('pixels') else torch.contiguous_format
    assert found.is_contiguous(memory_format=layout)


class Recorder(TorchDispatchMode):
    """Names of the operators that take or give tensors of torch's device without memory.

    It stands for a GPU: no number on it can be read, and what would be launched there shows.
    """

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        flat, _ = torch.utils._pytree.tree_flatten((args, kwargs, result))
        if any(isinstance(part, torch.Tensor) and part.is_meta for part in flat):
            self.names.append(func._schema.name.removeprefix('aten::'))
        return result


VIEWS = {'unsqueeze', 'select', 'slice', 'permute', 'detach', 'alias', 'view', 'unbind'}


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('form', ['pixels listed', 'pixels stacked'])
def test_few_operators_for_a_batch_of_any_size(form, training):
    names = []
    for count in (2, 8):
        preprocessor = DenseO2ODataPreprocessor(
            mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True, samples_on_host=True,
            batch_augments=[MIXUP, MULTI_SCALE],
        ).to('meta')  # fmt: skip
        preprocessor.batch_augments[1].draw_size = lambda base_size: 64
        data = in_form(make_data(count), form)
        with Recorder() as recorder:
            batch = preprocessor(data, training)
        names.append([name for name in recorder.names if name not in VIEWS])
        assert batch['inputs'].is_meta
        assert batch['inputs'].shape == (count, 3, *((32, 64) if training else (64, 96)))
    assert names[0] == names[1]
    expected = ['_to_copy', 'flip', 'div']
    if training:
        expected = ['_to_copy', 'upsample_nearest2d', 'flip', 'div', 'cat', 'lerp_']
    assert names[0] == expected


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('sizes', ['alike', 'different'])
@pytest.mark.parametrize('on_host', [True, False])
def test_samples_stay_on_the_host_or_follow_the_augments(on_host, sizes, training):
    """Also where mmdet's way is taken, for images of different sizes."""
    data = make_data(3)
    if sizes == 'different':
        data['inputs'][1] = data['inputs'][1][:, :32]
    seen = []

    class Augment(torch.nn.Module):
        def forward(self, inputs, samples, **options):
            seen.extend(sample.gt_instances.bboxes.is_meta for sample in samples)
            return inputs, samples

    preprocessor = DenseO2ODataPreprocessor(
        mean=[1, 2, 3], std=[4, 5, 6], samples_on_host=on_host, batch_augments=[MIXUP, MULTI_SCALE]
    ).to('meta')
    preprocessor.batch_augments.append(Augment())
    batch = preprocessor(data, training)
    assert batch['inputs'].is_meta
    for sample in batch['data_samples']:
        for objects in (sample.gt_instances, sample.ignored_instances):
            for tensor in (objects.bboxes, objects.labels):
                assert tensor.is_meta == (not on_host)
    assert seen == [False] * 3 * training


def test_samples_of_the_loader_are_not_changed():
    """A batch can be used twice: on a CPU too, the samples are copies."""
    data = make_data(3)
    before = copy.deepcopy(data['data_samples'])
    preprocessor = DenseO2ODataPreprocessor(
        mean=[0] * 3, std=[1] * 3, samples_on_host=True, batch_augments=[MIXUP, MULTI_SCALE]
    )
    first, second = (preprocess_again(preprocessor, data)['data_samples'] for _ in range(2))
    for given, sample, ours, again in zip(data['data_samples'], before, first, second, strict=True):
        assert given.metainfo == sample.metainfo
        assert torch.equal(given.gt_instances.bboxes.tensor, sample.gt_instances.bboxes.tensor)
        assert torch.equal(ours.gt_instances.bboxes, again.gt_instances.bboxes)
    assert [len(sample.gt_instances) for sample in first] == [2, 1, 3]


def preprocess_again(preprocessor, data):
    preprocessor.batch_augments[1].set_step_seed(0)
    return preprocessor(data, training=True)
