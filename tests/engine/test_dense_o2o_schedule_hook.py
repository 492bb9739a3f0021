import logging
from types import SimpleNamespace

from deim_mmdet.engine.hooks import DenseO2OScheduleHook
from deim_mmdet.engine.hooks.dense_o2o_schedule_hook import parts_with
from deim_mmdet.utils import Stage
from deim_mmdet.utils.shared import SharedIntegers

import pytest
import torch
from mmengine.dataset import Compose
from mmengine.logging import MessageHub
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset


class Staged:
    """A transform that reports its stage."""

    def __init__(self):
        self._stage = SharedIntegers(Stage.DENSE)

    def set_stage(self, stage):
        self._stage.set(stage)

    def __call__(self, results):
        return {**results, 'stage': self._stage.get()[0]}


class StagedAugment(nn.Module):
    stage = Stage.DENSE

    def set_stage(self, stage):
        self.stage = stage


class Base(Dataset):
    def __init__(self, *transforms):
        self.metainfo = {}
        self.pipeline = Compose(list(transforms))

    def full_init(self):
        pass

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.pipeline(dict(index=index))


class Mixing(Dataset):
    """Keeps its pipeline as a plain list, as MultiImageMixDataset does."""

    def __init__(self, dataset, *transforms):
        self.dataset = dataset
        self.pipeline = list(transforms)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        results = self.dataset[index]
        for transform in self.pipeline:
            results = transform(results)
        return results


def make_runner(dataset, loop_type=EpochBasedTrainLoop, augments=()):
    preprocessor = SimpleNamespace(batch_augments=nn.ModuleList(augments) if augments else None)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, persistent_workers=True)
    return SimpleNamespace(
        model=SimpleNamespace(data_preprocessor=preprocessor),
        train_dataloader=loader,
        train_loop=object.__new__(loop_type),
        epoch=0,
        max_epochs=10,
        logger=logging.getLogger('test'),
        message_hub=MessageHub.get_instance('dense_o2o_schedule'),
    )


def test_finds_parts_through_wrappers_once():
    inner, outer, nested = Staged(), Staged(), Staged()
    holder = SimpleNamespace(transforms=[nested, nested])
    dataset = ConcatDataset([Mixing(Base(inner), outer, holder), Base()])
    found = list(parts_with(dataset, 'set_stage'))
    assert len(found) == 3
    assert {id(part) for part in found} == {id(inner), id(outer), id(nested)}


def test_persistent_workers_and_batch_augments_follow_the_epoch():
    dataset = Mixing(Base(), Staged())
    augment = StagedAugment()
    runner = make_runner(dataset, augments=[augment])
    hook = DenseO2OScheduleHook(stages=(1, 3, 6))
    hook.before_train(runner)
    seen = []
    for runner.epoch in range(8):
        hook.before_train_epoch(runner)
        stages = torch.cat([batch['stage'] for batch in runner.train_dataloader])
        assert (stages == stages[0]).all()
        assert augment.stage == int(stages[0])
        seen.append(int(stages[0]))
    assert seen == [0, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize('epoch', [0, 2, 4, 7])
def test_resumed_run_is_in_its_stage_at_once(epoch, caplog):
    transform = Staged()
    runner = make_runner(Base(transform))
    runner.epoch = epoch
    hook = DenseO2OScheduleHook(stages=(1, 3, 6))
    hook.before_train(runner)
    with caplog.at_level(logging.INFO):
        hook.before_train_epoch(runner)
    expected = Stage.at_epoch(epoch, (1, 3, 6))
    assert transform({})['stage'] == expected
    assert expected.label in caplog.text
    assert runner.message_hub.get_info('stage') == expected.label


def test_logs_switches_only(caplog):
    runner = make_runner(Base(Staged()))
    hook = DenseO2OScheduleHook(stages=(0, 0, 4))
    hook.before_train(runner)
    with caplog.at_level(logging.INFO):
        for runner.epoch in range(6):
            hook.before_train_epoch(runner)
    assert [record.getMessage() for record in caplog.records] == [
        'Epoch 1 of 10: stage flat begins',
        'Epoch 5 of 10: stage no-augmentation begins',
    ]


def test_loop_without_epochs_is_refused():
    hook = DenseO2OScheduleHook(stages=(1, 2, 3))
    with pytest.raises(TypeError, match=r'IterBasedTrainLoop.*EpochBasedTrainLoop'):
        hook.before_train(make_runner(Base(), loop_type=IterBasedTrainLoop))


def test_stages_must_be_given_and_in_order():
    with pytest.raises(ValueError, match='ascending'):
        DenseO2OScheduleHook(stages=(3, 2, 4))
    with pytest.raises(ValueError, match='DEIMRunner'):
        DenseO2OScheduleHook().before_train(make_runner(Base()))
    hook = DenseO2OScheduleHook(stages=(1, 2, 3))
    hook.set_default((4, 5, 6))
    assert hook.stages == (1, 2, 3)


class Criterion:
    matcher, late_matcher, late = 'matcher', 1.5, False


def with_criterion(runner, criterion):
    runner.model.bbox_head = SimpleNamespace(criterion=criterion)
    return runner


@pytest.mark.parametrize('start', [0, 3, 4, 7])
def test_matcher_follows_the_epoch_also_of_a_resumed_run(start, caplog):
    criterion = Criterion()
    runner = with_criterion(make_runner(Base()), criterion)
    hook = DenseO2OScheduleHook(stages=(1, 3, 6))
    hook.set_default((2, 4, 6), 4)
    assert hook.stages == (1, 3, 6)
    runner.epoch = start
    hook.before_train(runner)
    late = {}
    with caplog.at_level(logging.INFO):
        for runner.epoch in range(start, 8):
            hook.before_train_epoch(runner)
            late[runner.epoch] = criterion.late
    assert late == {epoch: epoch >= 4 for epoch in range(start, 8)}
    changes = [r.getMessage() for r in caplog.records if 'matches' in r.getMessage()]
    assert changes == [f'Epoch {max(start, 4) + 1} of 10: float matches from here on']


def test_a_late_matcher_needs_its_epoch():
    runner = with_criterion(make_runner(Base()), Criterion())
    with pytest.raises(ValueError, match=r'recipe\.matcher_change_epoch, or .*late_matcher=None'):
        DenseO2OScheduleHook(stages=(1, 3, 6)).before_train(runner)
    runner.model.bbox_head.criterion.late_matcher = None
    DenseO2OScheduleHook(stages=(1, 3, 6)).before_train(runner)
