import copy

import pytest

pytestmark = pytest.mark.slow


def test_a_fused_copy_of_the_averaged_model_is_tested(make_runner, monkeypatch):
    fused = []

    def fuse(model, half, graph):
        assert half
        assert not graph
        fused.append(copy.deepcopy(model))
        del fused[-1].test_step
        return fused[-1]

    monkeypatch.setattr('deim_mmdet.engine.hooks.fused_test_hook.fuse', fuse)
    runner = make_runner(custom_hooks=[
        dict(type='FusedTestHook', graph=False),
        dict(type='ExpWarmupEMAHook', decay=0.5, warmup_iters=1),
    ])  # fmt: skip
    model, averaged = runner.model, 0.25
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'ExpWarmupEMAHook')
    monkeypatch.setattr(
        runner,
        'load_or_resume',
        lambda: hook.ema_model.module.bbox_head.cls.bias.data.fill_(averaged),
    )
    monkeypatch.setattr(model, 'test_step', None)
    runner.test()
    assert runner.model is model
    assert (fused[0].bbox_head.cls.bias == averaged).all()
    assert not (model.bbox_head.cls.bias == averaged).any()
