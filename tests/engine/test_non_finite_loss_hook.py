"""What a NaN does to a training: nothing.

The truth for a step that is left out is the training that never saw its batches.
"""

import copy
import functools
import math
from types import SimpleNamespace

from deim_mmdet.engine import (
    NonFiniteError,
    NonFiniteGradientError,
    NonFiniteLossError,
    NonFiniteLossHook,
    NonFiniteWeightError,
)

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import ConstantLR, OptimWrapper, OptimWrapperDict
from mmengine.registry import init_default_scope
from spoilt import (
    WRAPPERS,
    ConstantScaleOptimWrapper,
    ScaledOptimWrapper,
    Training,
    make_batch,
)

BATCHES = 6


def assert_same(first, second, but=()):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if not any(word in name for word in but):
            assert torch.equal(value, second[name]), name


FAULTS = ['nan', 'inf', 'one term', 'loss alone', 'gradient']
CLIPPING = [None, dict(max_norm=0.1), dict(type='value', clip_value=0.1)]


@pytest.mark.parametrize('clip_grad', CLIPPING, ids=['plain', 'norm', 'value'])
@pytest.mark.parametrize('wrapper_type', WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize('fault', FAULTS)
def test_a_step_left_out_is_as_if_it_had_never_been(fault, wrapper_type, clip_grad, caplog):
    make = functools.partial(Training, wrapper_type, 2, clip_grad=clip_grad)
    bad = {0: fault, 3: fault}
    training = make().run(make_batch(i, bad.get(i)) for i in range(BATCHES))
    truth = make().run(make_batch(i) for i in range(BATCHES) if i not in bad)
    assert_same(training.state(), truth.state())
    assert training.message_hub.get_info('skipped_steps') == 2
    first, second = (record.getMessage() for record in caplog.records)
    assert 'epoch 3, iteration 41' in first
    assert 'number 2 of at most 2' in second
    assert 'photo_3_0.jpg, photo_3_1.jpg' in second
    assert 'photo_2' not in second


@pytest.mark.parametrize(
    ('fault', 'error', 'words'),
    [
        ('nan', NonFiniteLossError, ['loss_box = nan', 'loss_cls = nan']),
        ('one term', NonFiniteLossError, ['loss_cls = nan']),
        ('gradient', NonFiniteGradientError, [': linear.weight. Images']),
    ],
)
@pytest.mark.parametrize('clip_grad', CLIPPING, ids=['plain', 'norm', 'value'])
@pytest.mark.parametrize('wrapper_type', WRAPPERS.values(), ids=WRAPPERS)
def test_stops_before_the_weights_change(fault, error, words, wrapper_type, clip_grad):
    training = Training(wrapper_type, clip_grad=clip_grad).run([make_batch(0)])
    before = {name: value.clone() for name, value in training.state().items()}
    with pytest.raises(error) as raised:
        training.run([make_batch(1, fault)])
    message = str(raised.value)
    for word in (*words, 'photo_1_0.jpg', 'epoch 3, iteration 42'):
        assert word in message
    assert ('loss_box' in message) == (fault == 'nan')
    assert_same(training.state(), before, but=('running', 'num_batches'))


@pytest.mark.parametrize('by_branch', [True, False])
def test_batches_of_other_models_have_several_lists_of_samples_or_none(by_branch):
    training, batch = Training(), make_batch(1, 'nan')
    given = {'inputs': batch['inputs']}
    if by_branch:
        samples = batch['data_samples']
        given['data_samples'] = {'sup': samples[:1], 'unsup_teacher': samples[1:]}
    training.hooks[0].before_train_iter(training, 0, given)
    with pytest.raises(NonFiniteLossError) as raised:
        training.model.train_step(batch, training.optim_wrapper)
    assert ('photo_1_0.jpg, photo_1_1.jpg' in str(raised.value)) == by_branch


def test_stops_after_as_many_as_allowed_counting_on_after_a_resume():
    training = Training(skip=2).run([make_batch(0, 'nan'), make_batch(1)])
    resumed = Training(skip=2)
    resumed.message_hub.load_state_dict(training.message_hub.state_dict())
    resumed.run([make_batch(2, 'gradient')])
    with pytest.raises(NonFiniteLossError, match='2 steps were left out before'):
        resumed.run([make_batch(3, 'nan')])


@pytest.mark.parametrize('clip_grad', CLIPPING, ids=['plain', 'norm', 'value'])
def test_schedulers_count_steps_of_the_wrapper_that_they_were_made_with(clip_grad, recwarn):
    training = Training(skip=1, clip_grad=clip_grad)
    for hook in training.hooks:
        hook.after_train(training)
    # It puts a method of its own on the wrapper.
    scheduler = ConstantLR(training.optim_wrapper, factor=0.5)
    for hook in training.hooks:
        hook.before_train(training)
    for index, fault in enumerate([None, 'gradient', None]):
        training.run([make_batch(index, fault)])
        scheduler.step()
    assert training.message_hub.get_info('skipped_steps') == 1
    assert training.model.linear.weight.isfinite().all()
    assert not recwarn


@pytest.mark.parametrize('bad', [(2,), (3,), (2, 3)], ids=['first', 'last', 'both'])
@pytest.mark.parametrize('fault', ['nan', 'gradient'])
def test_a_step_of_two_iterations_is_left_out_as_a_whole(fault, bad):
    make = functools.partial(Training, skip=1, accumulative_counts=2, clip_grad=dict(max_norm=0.1))
    training = make().run(make_batch(i, fault if i in bad else None) for i in range(BATCHES))
    truth = make().run(make_batch(i) for i in (0, 1, 4, 5))
    # Statistics of the iterations before the bad one stay, and reach the average; gradients are
    # complete in the last.
    assert_same(training.state(), truth.state(), but=('norm', 'average'))
    assert all(value.isfinite().all() for value in training.state().values())
    first = bad[0] if fault == 'nan' else 3
    good = make().run(make_batch(i) for i in range(BATCHES) if not first <= i <= 3)
    for name in ('running_mean', 'running_var', 'num_batches_tracked'):
        assert torch.equal(getattr(training.model.norm, name), getattr(good.model.norm, name))
    assert training.message_hub.get_info('skipped_steps') == 1


SCALED = [(ScaledOptimWrapper, 4.0), (ConstantScaleOptimWrapper, 8.0)]


@pytest.mark.parametrize('fused', [False, True], ids=['', 'fused'])
@pytest.mark.parametrize(('wrapper_type', 'scale'), SCALED, ids=['dynamic', 'constant'])
@pytest.mark.parametrize('clip_grad', CLIPPING, ids=['plain', 'norm', 'value'])
def test_the_scaler_of_float16_skips_infinite_gradients_itself(
    clip_grad, wrapper_type, scale, fused
):
    make = functools.partial(Training, wrapper_type, clip_grad=clip_grad, fused=fused)
    training = make().run(make_batch(i, 'gradient' if i == 1 else None) for i in range(3))
    truth = make().run(make_batch(i) for i in (0, 2))
    assert_same(training.state(), truth.state(), but=('norm', 'average'))
    assert training.optim_wrapper.loss_scaler.get_scale() == scale
    assert training.message_hub.get_info('skipped_steps') is None


@pytest.mark.parametrize('bad', [2, 3], ids=['first', 'last'])
@pytest.mark.parametrize('clip_grad', CLIPPING, ids=['plain', 'norm', 'value'])
def test_the_scaler_skips_a_step_of_two_iterations_as_a_whole(clip_grad, bad):
    make = functools.partial(
        Training, ScaledOptimWrapper, clip_grad=clip_grad, accumulative_counts=2
    )
    training = make().run(make_batch(i, 'gradient' if i == bad else None) for i in range(BATCHES))
    truth = make().run(make_batch(i) for i in (0, 1, 4, 5))
    assert_same(training.state(), truth.state(), but=('norm', 'average'))
    assert training.optim_wrapper.loss_scaler.get_scale() == 4


@pytest.mark.parametrize('accumulation', [1, 2])
@pytest.mark.parametrize(
    'wrapper_type',
    [*WRAPPERS.values(), ScaledOptimWrapper, ConstantScaleOptimWrapper],
    ids=[*WRAPPERS, 'dynamic', 'constant'],
)
def test_an_infinite_norm_does_not_reach_the_logged_average(wrapper_type, accumulation):
    training = Training(
        wrapper_type, skip=1, clip_grad=dict(max_norm=0.1), accumulative_counts=accumulation
    )
    training.run(make_batch(i, 'gradient' if i == 3 else None) for i in range(BATCHES))
    norms, counts = norms_of(training).data
    assert len(norms) == counts.sum() == BATCHES // accumulation - 1
    assert math.isfinite(norms_of(training).mean())


def steep(model):
    """The model with gradients that overflow at the largest scale."""
    model.linear.weight.register_hook(lambda gradient: 16 * gradient)
    return model


def test_steps_until_the_scale_settles_change_and_log_nothing():
    options = dict(wrap=steep, clip_grad=dict(max_norm=0.1))
    training = Training(ScaledOptimWrapper, init_scale=2.0**127, **options)
    training.run(make_batch(i) for i in range(8))
    norms, _ = norms_of(training).data
    scale = training.optim_wrapper.loss_scaler.get_scale()
    skipped = 127 - int(math.log2(scale))
    assert len(norms) == 8 - skipped
    assert 0 < skipped < 8
    assert all(map(math.isfinite, norms))
    # The scale is a power of two, which changes no digit of a gradient.
    truth = Training(**options).run(make_batch(i) for i in range(skipped, 8))
    assert_same(training.state(), truth.state(), but=('norm', 'average'))


@pytest.mark.parametrize('clip_grad', CLIPPING, ids=['plain', 'norm', 'value'])
@pytest.mark.parametrize('fault', ['nan', 'loss alone'])
def test_a_bad_loss_is_left_out_before_it_reaches_the_scaler(fault, clip_grad):
    make = functools.partial(Training, ScaledOptimWrapper, 1, clip_grad=clip_grad)
    training = make().run(make_batch(i, fault if i == 1 else None) for i in range(3))
    truth = make().run(make_batch(i) for i in (0, 2))
    assert_same(training.state(), truth.state())
    scalers = [run.optim_wrapper.loss_scaler.state_dict() for run in (training, truth)]
    assert scalers[0] == scalers[1]
    assert training.message_hub.get_info('skipped_steps') == 1


def test_only_finite_terms_are_logged():
    training = Training(skip=1).run([make_batch(0, 'one term')])
    assert training.outputs.keys() == {'loss_box'}
    assert training.outputs['loss_box'] > 0


def test_bad_weights_end_the_training_by_name():
    training = Training(skip=9).run([make_batch(0)])
    training.model.linear.bias.data[1] = float('nan')
    with pytest.raises(NonFiniteWeightError, match=r'iteration 42: linear\.bias\. Go on'):
        training.run([make_batch(1)])


@pytest.mark.parametrize('part', ['model', 'average'])
def test_bad_weights_are_not_saved(part):
    training = Training()
    average = training.hooks[1].ema_model
    state = (training.model if part == 'model' else average.module).state_dict()
    state['norm.running_var'][1] = float('inf')
    checkpoint = {'state_dict': training.model.state_dict()}
    with pytest.raises(NonFiniteWeightError, match=rf'{part}\b.*norm\.running_var'):
        training.hooks[0].before_save_checkpoint(training, checkpoint)


def test_evaluation_is_left_alone():
    training = Training()
    training.model.eval()
    batch = make_batch(0, 'one term')
    assert sum(training.model(**batch)['loss_cls']).isnan()


@pytest.mark.parametrize('clip_grad', CLIPPING, ids=['plain', 'norm', 'value'])
def test_nothing_is_left_behind(clip_grad):
    training = Training(clip_grad=clip_grad)
    untouched = OptimWrapper(training.optim_wrapper.optimizer, clip_grad=copy.deepcopy(clip_grad))
    training.run([make_batch(0)])
    training.hooks[0].after_train(training)
    for name in ('clip_func', 'clip_grad_kwargs'):
        expected = getattr(untouched, name, None)
        assert getattr(training.optim_wrapper, name) == expected
    assert not training.model._forward_hooks
    training.run([make_batch(0, 'one term')])
    assert training.model.linear.weight.isnan().any()


def norms_of(training):
    """Those of all steps, as they were logged."""
    return training.optim_wrapper.message_hub.get_scalar('train/grad_norm')


def norm_of(training):
    """That of the last step, as it was logged."""
    return norms_of(training).current()


class Reads:
    """Counts what is read from a tensor by the host, and whether gradients were there by then."""

    def __init__(self, monkeypatch):
        self.after_backward = []
        for name in ('item', 'tolist', '__float__', '__int__', '__bool__', '__index__'):
            monkeypatch.setattr(torch.Tensor, name, self.counted(getattr(torch.Tensor, name)))

    def counted(self, method):
        def read(tensor):
            self.after_backward.append(self.wrapper.inner_count > self.count)
            return method(tensor)

        return read

    def of(self, training):
        """Reads of the next training step, each as whether it came after the backward pass."""
        self.wrapper, self.count = training.optim_wrapper, training.optim_wrapper.inner_count
        self.after_backward.clear()
        training.model.train_step(make_batch(3), training.optim_wrapper)
        return list(self.after_backward)


@pytest.mark.parametrize('wrapper_type', WRAPPERS.values(), ids=WRAPPERS)
def test_a_good_step_reads_once_and_after_the_backward_pass(wrapper_type, monkeypatch):
    """As often as without the hook, where mmengine reads the norm for the log."""
    training = Training(wrapper_type, clip_grad=dict(max_norm=0.1)).run([make_batch(0)])
    # The optimiser of the CPU reads numbers of steps that it keeps there.
    training.optim_wrapper.optimizer.step = lambda: None
    with monkeypatch.context() as patch:
        assert Reads(patch).of(training) == [True]
    norm = norm_of(training)
    training.hooks[0].after_train(training)
    with monkeypatch.context() as patch:
        assert Reads(patch).of(training) == [True]
    assert norm_of(training) == norm


def test_several_optimisers_are_refused():
    wrappers = {
        name: OptimWrapper(torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), 0.1))
        for name in ('first', 'second')
    }
    runner = SimpleNamespace(optim_wrapper=OptimWrapperDict(**wrappers))
    with pytest.raises(TypeError, match='NonFiniteLossHook works with one optimiser, but optim_wr'):
        NonFiniteLossHook().before_train(runner)


@pytest.mark.parametrize('number', [-1, 1.5, True])
def test_numbers_of_steps_are_checked(number):
    with pytest.raises(ValueError, match='skip_non_finite must be an integer of at least 0'):
        NonFiniteLossHook(number)


# Fault of step 1, steps that may be left out, and steps; the last is the truth for the others.
RANK_CASES = [
    ('nan', 1, (0, 1, 2)),
    ('one term', 1, (0, 1, 2)),
    ('gradient', 1, (0, 1, 2)),
    ('nan', 0, (0, 1, 2)),
    ('gradient', 0, (0, 1, 2)),
    (None, 0, (0, 2)),
]


def run_rank(rank: int, folder: str) -> None:
    """Each case on one of two ranks, of which the second has the bad batch; leaves its results."""
    torch.set_num_threads(1)
    init_default_scope('mmdet')
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2
    )
    results = []
    for fault, skip, steps in RANK_CASES:
        wrap = MMDistributedDataParallel
        training = Training(skip=skip, wrap=wrap, clip_grad=dict(max_norm=0.1))
        bad = {1: fault} if rank == 1 else {}
        try:
            training.run(make_batch(2 * step + rank, bad.get(step)) for step in steps)
            results.append(training.state())
        except NonFiniteError as error:
            results.append(str(error))
    torch.save(results, f'{folder}/rank_{rank}.pt')
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_take_the_same_decision(tmp_path):
    torch.multiprocessing.start_processes(run_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f'rank_{rank}.pt') for rank in range(2)]
    for results in ranks:
        *results, truth = results
        for (fault, skip, _), result in zip(RANK_CASES, results, strict=False):
            if skip:
                assert_same(result, truth)
            else:
                cause = 'linear.weight' if fault == 'gradient' else 'loss_box = nan'
                assert cause in result
                assert 'photo_3_0.jpg' in result
    stopped = [[r for r in results if isinstance(r, str)] for results in ranks]
    assert stopped[0] == stopped[1]
    assert len(stopped[0]) == 2
