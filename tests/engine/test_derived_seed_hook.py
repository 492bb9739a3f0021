import logging
from types import SimpleNamespace

from deim_mmdet.engine.hooks import DerivedSeedHook, derived_seed_hook

import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.dataset import DefaultSampler
from mmengine.logging import MessageHub
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader, Dataset

AUGMENTS = [dict(type='DenseO2OMixUp'), dict(type='DenseO2OMultiScale')]


class Seeded(Dataset):
    """Remembers what it was told."""

    metainfo = {}
    told = None

    def full_init(self):
        pass

    def set_seed(self, seed, epoch):
        self.told = (seed, epoch)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index


class Repeated(Dataset):
    """As mmengine's ``RepeatDataset``."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 2 * len(self.dataset)


class Plain(Dataset):
    def __len__(self):
        return 4


@pytest.fixture
def make_runner(request):
    def make(dataset, seed=5, sampler_seed=5, loop=EpochBasedTrainLoop):
        sampler = DefaultSampler(dataset, shuffle=True, seed=sampler_seed)
        make.count += 1
        return SimpleNamespace(
            train_dataloader=DataLoader(dataset, batch_size=2, sampler=sampler),
            train_loop=object.__new__(loop),
            model=SimpleNamespace(data_preprocessor=DetDataPreprocessor(batch_augments=AUGMENTS)),
            seed=seed,
            epoch=0,
            iter=0,
            logger=logging.getLogger('test'),
            message_hub=MessageHub.get_instance(f'{request.node.name}_{make.count}'),
        )

    make.count = 0
    return make


def test_data_set_is_told_seed_and_epoch(make_runner):
    dataset = Seeded()
    runner, hook = make_runner(dataset), DerivedSeedHook()
    hook.before_train(runner)
    assert dataset.told is None
    for runner.epoch in (0, 7):
        hook.before_train_epoch(runner)
        assert dataset.told == (5, runner.epoch)


def iteration_draws(hook, runner, rank, monkeypatch):
    monkeypatch.setattr(derived_seed_hook, 'get_rank', lambda: rank)
    hook.before_train_iter(runner, 0)
    return np.random.rand(), float(torch.rand(()))


def test_iterations_and_ranks_draw_their_own_numbers(make_runner, monkeypatch):
    runner, hook = make_runner(Seeded()), DerivedSeedHook()
    hook.before_train(runner)
    drawn = {}
    for runner.iter in (0, 1, 2):
        for rank in (0, 1, 2):
            drawn[runner.iter, rank] = iteration_draws(hook, runner, rank, monkeypatch)
    assert len(set(drawn.values())) == 9
    runner.iter = 1
    assert iteration_draws(hook, runner, 2, monkeypatch) == drawn[1, 2]


def test_all_ranks_draw_one_size_for_an_iteration(make_runner, monkeypatch):
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(derived_seed_hook, 'get_rank', lambda: rank)  # noqa: B023
        runner, hook = make_runner(Seeded()), DerivedSeedHook()
        hook.before_train(runner)
        sizes = []
        for runner.iter in range(40):
            hook.before_train_iter(runner, 0)
            sizes.append(runner.model.data_preprocessor.batch_augments[1].draw_size(320))
        drawn.append(sizes)
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {224, 256, 288, 320, 352, 384}
    other = make_runner(Seeded(), seed=6)
    hook.before_train(other)
    hook.before_train_iter(other, 0)
    of_other = [other.model.data_preprocessor.batch_augments[1].draw_size(320) for _ in range(40)]
    assert of_other != drawn[0]


def test_resumed_run_goes_on_with_the_order_of_its_samples(make_runner):
    """Without a seed in the config both runs draw one of their own for the sampler."""
    first = make_runner(Seeded(), sampler_seed=123)
    DerivedSeedHook().before_train(first)
    resumed = make_runner(Seeded(), sampler_seed=456)
    resumed.message_hub.load_state_dict(first.message_hub.state_dict())
    DerivedSeedHook().before_train(resumed)
    orders = [[*runner.train_dataloader.sampler] for runner in (first, resumed)]
    assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ('dataset', 'words'),
    [
        (Plain(), "Wrap it in dict(type='DenseO2ODataset'"),
        (Repeated(Seeded()), 'Repeated repeats the samples of DenseO2ODataset'),
    ],
    ids=['plain', 'repeated'],
)
def test_warns_of_samples_that_are_not_derived(make_runner, caplog, dataset, words):
    runner, hook = make_runner(dataset), DerivedSeedHook()
    with caplog.at_level(logging.WARNING):
        hook.before_train(runner)
        hook.before_train_epoch(runner)
    assert words in caplog.text


def test_loop_without_epochs_is_refused(make_runner):
    """Its epoch never changes: every pass over the data would give the same samples."""
    runner = make_runner(Seeded(), loop=IterBasedTrainLoop)
    with pytest.raises(TypeError, match=r'DerivedSeedHook.*IterBasedTrainLoop.*max_epochs'):
        DerivedSeedHook().before_train(runner)
