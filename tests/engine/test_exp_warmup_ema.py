import math
from types import SimpleNamespace

from deim_mmdet.engine.hooks import ExpWarmupEMA, ExpWarmupEMAHook

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


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
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_a_parameter_of_two_names_is_averaged_once():
    """As a head that all layers of a decoder share."""
    shared = nn.Linear(3, 3)
    network = nn.ModuleList([shared, shared])
    average = ExpWarmupEMA(network, decay=0.9, warmup_iters=1)
    start = shared.weight.detach().clone()
    disturb(network, torch.Generator().manual_seed(0))
    average.update_parameters(network)
    d = 0.9 * (1 - math.exp(-1))
    expected = d * start + (1 - d) * shared.weight.detach()
    for head in average.module:
        torch.testing.assert_close(head.weight.detach(), expected)


def test_published_decays():
    """Worked out by hand: 1 - e^-0.001 = 0.0009995002, 1 - e^-1 = 0.6321205588."""
    average = ExpWarmupEMA(model())
    decays = [average.decay_at(update) for update in (1, 1000, 100_000)]
    assert decays == pytest.approx([0.0009994002, 0.6320573468, 0.9999], rel=1e-7)
    # Recipes that start from trained detectors have no warm-up.
    assert ExpWarmupEMA(model(), warmup_iters=0).decay_at(1) == 0.9999


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


def test_tensors_are_looked_up_once_for_each_model():
    first, second = model(), model()
    average = ExpWarmupEMA(first, decay=0.5, warmup_iters=1e-3)
    with torch.no_grad():
        first[0].weight.fill_(1.0)
        second[0].weight.fill_(3.0)
    average.copy_from(first)
    average.update_parameters(second)
    assert (average.module[0].weight == 2.0).all()
    average.update_parameters(first)
    assert (average.module[0].weight == 1.5).all()
    lookups = []
    first.register_state_dict_pre_hook(lambda *_: lookups.append(1))
    first[0].weight.data = torch.zeros(3, 3)
    average.update_parameters(first)
    assert (average.module[0].weight == 0.75).all()
    assert not lookups
    # It is no part of the average.
    assert not any(key.startswith('_paired') for key in average.state_dict())


class Calls(TorchDispatchMode):
    """Counts operators as they are called, but for views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name not in ('detach', 'alias'):
            self.names.append(name)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize('layers', [1, 40])
def test_an_update_calls_one_operator_for_all_parameters(layers):
    network = nn.Sequential(*(model() for _ in range(layers)))
    runner = SimpleNamespace(model=network, hooks=[], max_iters=10, iter=0, epoch=0)
    hook = ExpWarmupEMAHook(decay=0.9, warmup_iters=1)
    hook.before_run(runner)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    with Calls() as calls:
        hook.after_train_iter(runner, 1)
    assert sorted(calls.names) == [
        *('_foreach_copy_', '_foreach_lerp_'),
        # The number of updates, kept on the host.
        *('_local_scalar_dense', 'add_'),
    ]


def test_numbers_of_the_config_are_kept():
    hook = ExpWarmupEMAHook(decay=0.5)
    hook.set_default(decay=0.9, warmup_iters=3)
    hook.before_run(SimpleNamespace(model=model()))
    assert (hook.ema_model.decay, hook.ema_model.warmup_iters) == (0.5, 3)


@pytest.mark.parametrize('numbers', [dict(decay=1.0), dict(decay=-0.1), dict(warmup_iters=-1)])
def test_bad_numbers(numbers):
    with pytest.raises(ValueError, match=next(iter(numbers))):
        ExpWarmupEMA(model(), **numbers)
