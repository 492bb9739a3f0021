import logging
from types import SimpleNamespace

from deim_mmdet.engine.hooks import ResumableEarlyStoppingHook

import pytest
from mmdet.registry import HOOKS
from mmengine.hooks import EarlyStoppingHook
from mmengine.logging import MessageHub

OPTIONS = dict(monitor='coco/bbox_mAP', min_delta=0.0, patience=3)
SCORES = [0.1, 0.3, 0.2, 0.25, 0.31, 0.1, 0.2, 0.3, 0.5]


def make_runner(name):
    return SimpleNamespace(
        train_loop=SimpleNamespace(stop_training=False),
        logger=logging.getLogger('test'),
        message_hub=MessageHub.get_instance(name),
    )


def stopped_after(hook, runner, scores):
    """Number of evaluations until the hook stops, all where it doesn't."""
    for count, score in enumerate(scores, 1):
        hook.after_val_epoch(runner, {'coco/bbox_mAP': score})
        if runner.train_loop.stop_training:
            return count
    return len(scores)


@pytest.mark.parametrize('interrupted', range(1, 9))
@pytest.mark.parametrize('options', [{}, dict(stopping_threshold=0.305), dict(patience=2)])
def test_stops_where_mmengines_does_though_it_is_interrupted(interrupted, options, request):
    options = {**OPTIONS, **options}
    expected = stopped_after(EarlyStoppingHook(**options), make_runner('whole'), SCORES)

    first = make_runner(f'{request.node.name}_first')
    count = stopped_after(ResumableEarlyStoppingHook(**options), first, SCORES[:interrupted])
    resumed = make_runner(f'{request.node.name}_resumed')
    resumed.message_hub.load_state_dict(first.message_hub.state_dict())
    hook = ResumableEarlyStoppingHook(**options)
    hook.before_train(resumed)
    # A training that had ended stays so.
    assert resumed.train_loop.stop_training == first.train_loop.stop_training
    if not resumed.train_loop.stop_training:
        count += stopped_after(hook, resumed, SCORES[interrupted:])
    assert count == expected


def test_more_patience_goes_on():
    first = make_runner('patience')
    assert stopped_after(ResumableEarlyStoppingHook(**OPTIONS), first, [0.3, 0.2, 0.2, 0.2]) == 4
    first.train_loop.stop_training = False
    ResumableEarlyStoppingHook(**{**OPTIONS, 'patience': 4}).before_train(first)
    assert not first.train_loop.stop_training


def test_is_registered():
    assert isinstance(
        HOOKS.build(dict(type='ResumableEarlyStoppingHook', **OPTIONS)), EarlyStoppingHook
    )
