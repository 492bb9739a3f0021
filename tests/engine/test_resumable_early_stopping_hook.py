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


@pytest.mark.parametrize('options', [{}, dict(stopping_threshold=0.305), dict(patience=2)])
def test_stops_where_mmengines_does_though_it_is_interrupted(options, request):
    """A checkpoint holds the state before the evaluation that follows it."""
    options = {**OPTIONS, **options}
    expected = stopped_after(EarlyStoppingHook(**options), make_runner('whole'), SCORES)
    assert expected < len(SCORES)
    for known in range(expected):
        first = make_runner(f'{request.node.name}_{known}_first')
        stopped_after(ResumableEarlyStoppingHook(**options), first, SCORES[:known])
        resumed = make_runner(f'{request.node.name}_{known}_resumed')
        resumed.message_hub.load_state_dict(first.message_hub.state_dict())
        hook = ResumableEarlyStoppingHook(**options)
        hook.before_train(resumed)
        assert known + stopped_after(hook, resumed, SCORES[known:]) == expected


def test_more_patience_goes_on():
    saved, scores = make_runner('patience'), [0.3, 0.2, 0.2, 0.2, 0.2]
    stopped_after(ResumableEarlyStoppingHook(**OPTIONS), saved, scores[:3])
    hook = ResumableEarlyStoppingHook(**{**OPTIONS, 'patience': 4})
    hook.before_train(saved)
    assert stopped_after(hook, saved, scores[3:]) == 2


def test_is_registered():
    assert isinstance(
        HOOKS.build(dict(type='ResumableEarlyStoppingHook', **OPTIONS)), EarlyStoppingHook
    )
