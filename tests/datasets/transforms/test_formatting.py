"""The quicker forms of mmdet's transforms give what mmdet's give."""

import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS


@pytest.fixture
def sample(make_sample):
    img = np.random.default_rng(0).integers(0, 256, (30, 44, 3), dtype=np.uint8)
    sample = make_sample([[2, 3, 20, 18], [10, 0, 44, 30], [5, 5, 9, 8]], 30, 44, img)
    sample['gt_ignore_flags'][1] = True
    return sample


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
@pytest.mark.parametrize('channels', [1, 3])
def test_flip(make_sample, sample, direction, channels):
    img = sample['img'][..., :channels]
    results = []
    for kind in ('RandomFlip', 'ContiguousRandomFlip'):
        flip = TRANSFORMS.build({'type': kind, 'prob': 1.0, 'direction': direction})
        results.append(flip(make_sample(sample['gt_bboxes'].tensor, 30, 44, img)))
    theirs, ours = results
    assert np.array_equal(ours['img'], theirs['img'])
    assert ours['img'].flags.c_contiguous
    assert torch.equal(ours['gt_bboxes'].tensor, theirs['gt_bboxes'].tensor)
    assert ours['flip_direction'] == theirs['flip_direction'] == direction


def test_no_flip(sample):
    img = sample['img']
    results = TRANSFORMS.build({'type': 'ContiguousRandomFlip', 'prob': 0.0})(sample)
    assert results['img'] is img
    assert results['flip'] is False


@pytest.mark.parametrize('name', ['PackDetImage', 'PackDetPlanes'])
@pytest.mark.parametrize('form', ['contiguous', 'flipped', 'cropped', 'float', 'grey', 'one'])
def test_pack(sample, form, name):
    img = sample['img']
    sample['img'] = {
        'contiguous': img,
        'flipped': img[:, ::-1],
        'cropped': img[3:20, 5:30],
        'float': img.astype(np.float32),
        'grey': img[..., 0],
        'one': img[..., :1],
    }[form]
    theirs, ours = (
        TRANSFORMS.build({'type': kind, 'meta_keys': ('ori_shape',)})({**sample})
        for kind in ('PackDetInputs', name)
    )
    assert ours['inputs'].dtype == theirs['inputs'].dtype
    assert torch.equal(ours['inputs'], theirs['inputs'])
    # As they are: a view of the pixels, without a copy where these lie one after the other.
    assert ours['inputs'].permute(1, 2, 0).is_contiguous()
    assert np.shares_memory(ours['inputs'].numpy(), sample['img']) == (
        form in ('contiguous', 'float')
    )
    expected, packed = theirs['data_samples'], ours['data_samples']
    assert packed.metainfo == expected.metainfo == {'ori_shape': (30, 44)}
    for name in ('gt_instances', 'ignored_instances'):
        assert torch.equal(packed.get(name).bboxes.tensor, expected.get(name).bboxes.tensor)
        assert torch.equal(packed.get(name).labels, expected.get(name).labels)
