"""Batches of the data loaders."""

from deim_mmdet.datasets import stack_images
from deim_mmdet.datasets.collate import stacking

import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS
from torch.utils.data import DataLoader

SHAPE = (6, 10, 3)


def arrays(*shapes, dtype=np.uint8):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, shape).astype(dtype) for shape in shapes]


def packed(images, kind='PackDetImage'):
    pack = TRANSFORMS.build(dict(type=kind, meta_keys=()))
    return [pack(dict(img=image)) for image in images]


@pytest.mark.parametrize('kind', ['PackDetImage', 'PackDetPlanes', 'PackDetInputs'])
def test_images_are_stacked_in_the_layout_that_they_have(kind):
    images = arrays(SHAPE, SHAPE)
    samples = packed(images, kind)
    batch = stack_images(samples)
    assert batch['inputs'].dtype == torch.uint8
    assert np.array_equal(batch['inputs'].numpy(), np.stack(images).transpose(0, 3, 1, 2))
    planes = kind == 'PackDetInputs'
    layout = torch.contiguous_format if planes else torch.channels_last
    assert batch['inputs'].is_contiguous(memory_format=layout)
    assert [id(s) for s in batch['data_samples']] == [id(s['data_samples']) for s in samples]


@pytest.mark.parametrize(
    'samples',
    [
        packed(arrays(SHAPE, (10, 6, 3))),
        packed([*arrays(SHAPE), *arrays(SHAPE, dtype=np.float32)]),
        [('a.jpg', sample) for sample in packed(arrays(SHAPE, SHAPE))],
        [dict(inputs=[sample['inputs']] * 2) for sample in packed(arrays(SHAPE, SHAPE))],
        [dict(inputs=dict(left=sample['inputs'])) for sample in packed(arrays(SHAPE, SHAPE))],
        [dict(points=torch.zeros(2))],
    ],
    ids=['shapes', 'types', 'inferencer', 'views of one image', 'several inputs', 'no image'],
)
def test_the_rest_is_left_as_mmengine_has_it(samples):
    assert str(stack_images(samples)) == str(pseudo_collate(samples))


def in_shared_memory(samples):
    batch = stack_images(samples)
    return batch, batch['inputs'].is_shared()


def test_workers_stack_into_shared_memory():
    images = arrays(*[SHAPE] * 4)
    loader = DataLoader(packed(images), batch_size=2, num_workers=1, collate_fn=in_shared_memory)
    for number, (batch, shared) in enumerate(loader):
        assert shared
        assert batch['inputs'].is_contiguous(memory_format=torch.channels_last)
        for image, found in zip(images[2 * number :], batch['inputs'], strict=False):
            assert np.array_equal(found.permute(1, 2, 0).numpy(), image)


def test_configs_name_it_where_mmengine_bears_it(repo_root):
    """With one in ``test_dataloader``, ``DetInferencer`` cannot be built."""
    cfg = Config.fromfile(repo_root / 'configs/deim_dfine_n.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert FUNCTIONS.get(loader.collate_fn.type) is stack_images
    assert 'collate_fn' not in cfg.test_dataloader


def test_the_runner_stacks_what_pack_det_image_packs(repo_root):
    loader = Config.fromfile(repo_root / 'configs/deim_dfine_n.py').test_dataloader
    pipeline = loader.dataset.pipeline
    assert stacking(loader) == dict(loader, collate_fn=dict(type='stack_images'))
    assert stacking(dict(loader, collate_fn='mine')) == dict(loader, collate_fn='mine')
    pipeline[-1] = dict(type='PackDetInputs')
    for dataset in (loader.dataset, dict(type='A'), dict(pipeline=[]), object()):
        assert stacking(dict(dataset=dataset)) == dict(dataset=dataset)
