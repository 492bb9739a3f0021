import math
from types import SimpleNamespace

from deim_mmdet.engine.hooks import ExpWarmupEMA, ExpWarmupEMAHook

import pytest
import torch
from torch import nn


def model():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def disturb(network, generator):
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(7)


def test_formula_over_parameters_and_buffers():
    network, generator = model(), torch.Generator().manual_seed(0)
    average = ExpWarmupEMA(network, decay=0.99, warmup_iters=5)
    expected = {k: v.double().clone() for k, v in network.state_dict().items()}
    for n in range(1, 30):
        disturb(network, generator)
        average.update_parameters(network)
        d = 0.99 * (1 - math.exp(-n / 5))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                expected[name] = d * expected[name] + (1 - d) * value.double()
            else:
                expected[name] = value.double()
    assert int(average.steps) == 29
    assert {'1.running_mean', '1.num_batches_tracked'} <= set(expected)
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_published_decays():
    average = ExpWarmupEMA(model())
    assert average.decay_at(1) == pytest.approx(0.9999 * (1 - math.exp(-1 / 1000)))
    assert average.decay_at(1000) == pytest.approx(0.9999 * (1 - 1 / math.e))
    assert average.decay_at(100_000) == pytest.approx(0.9999)


def test_average_starts_from_the_weights_at_the_start_of_training():
    network = model()
    runner = SimpleNamespace(model=network, hooks=[], max_iters=10, iter=0, epoch=0)
    hook = ExpWarmupEMAHook(decay=0.9, warmup_iters=1)
    hook.before_run(runner)
    disturb(network, torch.Generator().manual_seed(1))  # weights loaded after before_run
    start = network[0].weight.detach().clone()
    hook.before_train(runner)
    disturb(network, torch.Generator().manual_seed(2))
    hook.after_train_iter(runner, 0)
    d = 0.9 * (1 - math.exp(-1))
    torch.testing.assert_close(
        hook.ema_model.module[0].weight, d * start + (1 - d) * network[0].weight.detach()
    )


def test_numbers_of_the_config_are_kept():
    hook = ExpWarmupEMAHook(decay=0.5)
    hook.set_default(decay=0.9, warmup_iters=3)
    hook.before_run(SimpleNamespace(model=model()))
    assert (hook.ema_model.decay, hook.ema_model.warmup_iters) == (0.5, 3)


@pytest.mark.parametrize('numbers', [dict(decay=1.0), dict(decay=-0.1), dict(warmup_iters=0)])
def test_bad_numbers(numbers):
    with pytest.raises(ValueError, match=next(iter(numbers))):
        ExpWarmupEMA(model(), **numbers)
