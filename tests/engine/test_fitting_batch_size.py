"""The batch size that fits is found by trying, on a GPU; the rest is tried without one."""

from deim_mmdet.engine import RunFault, fitting_batch_size
from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.fitting_batch_size import OBJECTS, largest_fitting, take_steps

import pytest
import torch
import toy
from mmengine.registry import DefaultScope


@pytest.mark.parametrize(
    ('memory', 'found'), [(0, 0), (1, 1), (3, 3), (5, 4), (11, 8), (12, 12), (100, 96), (9999, 64)]
)
def test_the_largest_of_the_tried_sizes(memory, found):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= memory

    assert largest_fitting(fits, limit=64 if memory == 9999 else 1024) == found
    # Nothing is tried that is far too large.
    assert max(asked) <= max(1, 2 * memory)


@pytest.fixture
def cfg():
    cfg = load_config(toy.ROOT / 'configs' / 'deim_dfine_l.py', dict(image_size=128))
    cfg.model = dict(
        type='ToyDetector',
        data_preprocessor=cfg.model.data_preprocessor,
        bbox_head=dict(num_classes=2, num_queries=10),
    )
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    return cfg


def test_steps_take_the_largest_size_and_change_no_config(cfg, monkeypatch):
    before, seen = cfg.pretty_text, []
    whole = toy.ToyDetector.loss

    def loss(self, inputs, data_samples):
        seen.append((tuple(inputs.shape), [len(s.gt_instances) for s in data_samples]))
        return whole(self, inputs, data_samples)

    monkeypatch.setattr(toy.ToyDetector, 'loss', loss)
    take_steps(cfg, 3, 'cpu')
    assert [shape for shape, _ in seen] == [(3, 3, 160, 160)] * 2
    # Mixup adds the objects of another image.
    assert all(min(counts) >= OBJECTS for _, counts in seen)
    assert cfg.pretty_text == before


def test_the_outcome_is_a_number_or_a_clear_error(cfg, monkeypatch):
    with pytest.raises(RunFault, match='memory of a GPU, and this is device cpu'):
        fitting_batch_size.fitting_batch_size(cfg, 'cpu')
    for most, found in ((7, 6), (0, None)):
        monkeypatch.setattr(fitting_batch_size, '_fits', lambda *args, most=most: args[1] <= most)
        if found:
            assert fitting_batch_size.fitting_batch_size(cfg, 'cuda') == found
        else:
            with pytest.raises(RunFault, match=r'not even a batch of one image .*--amp'):
                fitting_batch_size.fitting_batch_size(cfg, 'cuda')


def test_a_published_config_is_tried_without_a_runner(monkeypatch):
    """Nothing else has told MMEngine yet in which registry the parts are."""
    monkeypatch.setattr(
        fitting_batch_size, '_fits', lambda cfg, size, device: not take_steps(cfg, size, 'cpu', 1)
    )
    monkeypatch.setattr(fitting_batch_size, 'largest_fitting', lambda fits: int(fits(1)))
    scope = DefaultScope._instance_dict.copy()
    DefaultScope._instance_dict.clear()
    try:
        cfg = load_config(toy.ROOT / 'configs' / 'deimv2_atto.py', dict(image_size=64))
        assert fitting_batch_size.fitting_batch_size(cfg, 'cuda') == 1
    finally:
        DefaultScope._instance_dict.update(scope)


def test_images_without_a_fixed_size_are_refused(cfg):
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[loader].dataset.pipeline = []
    with pytest.raises(RunFault, match='finds no fixed one: give a number'):
        fitting_batch_size.fitting_batch_size(cfg, 'cuda')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu(cfg):
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        assert fitting_batch_size.fitting_batch_size(cfg) >= 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
