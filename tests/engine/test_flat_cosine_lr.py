from deim_mmdet.engine.recipe import PublishedRecipe, derive_recipe
from deim_mmdet.engine.schedulers import FlatCosineLR

import pytest
import torch
from mmdet.registry import PARAM_SCHEDULERS
from mmengine.optim import LinearLR, MultiStepLR
from schedules import MODELS, published_numbers, schedule


def run(optimizer, scheduler, iterations):
    """Learning rate of each group at each iteration."""
    rates = []
    for _ in range(iterations):
        rates.append([group['lr'] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize('model', MODELS)
def test_golden_curve(model):
    golden = schedule(model)
    iters = golden['lr_schedule']['iters_per_epoch']
    numbers = published_numbers(model)
    # The published warm-up, but the curve's own iterations an epoch.
    published = PublishedRecipe(**numbers, train_images=iters * numbers['batch_size'])
    recipe = derive_recipe(published, published.epochs, published.batch_size, iters)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=golden['optimizer']['lr'])
    scheduler = FlatCosineLR(
        optimizer, recipe.warmup_iters, recipe.cosine_begin, recipe.cosine_end, recipe.lr_gamma
    )
    rates = run(optimizer, scheduler, golden['epochs'] * iters)
    for iteration, rate in golden['lr_schedule']['curve']:
        assert rates[iteration][0] == pytest.approx(rate, rel=1e-9, abs=1e-15), iteration


def two_groups():
    return torch.optim.SGD(
        [
            dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=0.1),
            dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=0.004),
        ]
    )


def test_groups_keep_their_ratio():
    optimizer = two_groups()
    scheduler = PARAM_SCHEDULERS.build(
        dict(
            type='FlatCosineLR',
            optimizer=optimizer,
            warmup_iters=10,
            cosine_begin=20,
            cosine_end=40,
            lr_gamma=0.1,
        )
    )
    rates = run(optimizer, scheduler, 50)
    assert all(first == pytest.approx(25 * second) for first, second in rates)
    assert rates[-1] == pytest.approx([0.01, 0.0004])


def test_resume_goes_on_at_its_iteration_with_the_configs_numbers():
    numbers = dict(warmup_iters=4, cosine_begin=10, cosine_end=20)
    optimizer = two_groups()
    scheduler = FlatCosineLR(optimizer, **numbers)
    uninterrupted = run(optimizer, scheduler, 25)

    optimizer = two_groups()
    scheduler = FlatCosineLR(optimizer, **numbers)
    run(optimizer, scheduler, 12)
    states = optimizer.state_dict(), scheduler.state_dict()
    resumed_optimizer = two_groups()
    resumed = FlatCosineLR(resumed_optimizer, **numbers)
    resumed_optimizer.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert run(resumed_optimizer, resumed, 13) == uninterrupted[12:]

    prolonged = FlatCosineLR(two_groups(), warmup_iters=4, cosine_begin=50, cosine_end=90)
    prolonged.load_state_dict(states[1])
    assert prolonged.last_step == 12
    assert prolonged.cosine_end == 90


@pytest.mark.parametrize('stopped', [4, 9, 10, 14, 22, 28])
def test_a_resumed_run_keeps_the_rates_of_schedulers_before_and_after(stopped):
    def build():
        optimizer = two_groups()
        return optimizer, [
            LinearLR(optimizer, start_factor=0.1, by_epoch=False, begin=0, end=10),
            FlatCosineLR(
                optimizer, warmup_iters=0, cosine_begin=5, cosine_end=10, begin=10, end=20
            ),
            MultiStepLR(optimizer, milestones=[5], gamma=0.1, by_epoch=False, begin=20, end=30),
        ]

    def rates(optimizer, schedulers, iterations):
        found = []
        for _ in range(iterations):
            found.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
        return found

    uninterrupted = rates(*build(), 30)
    assert len({*uninterrupted}) > 12
    optimizer, schedulers = build()
    rates(optimizer, schedulers, stopped)
    resumed_optimizer, resumed = build()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    for scheduler, before in zip(resumed, schedulers, strict=True):
        scheduler.load_state_dict(before.state_dict())
    assert rates(resumed_optimizer, resumed, 30 - stopped) == uninterrupted[stopped:]


@pytest.mark.parametrize(
    ('change', 'word'),
    [
        (dict(warmup_iters=-1), 'warmup_iters'),
        (dict(cosine_begin=9, cosine_end=3), 'cosine_begin'),
        (dict(lr_gamma=0), 'lr_gamma'),
        (dict(by_epoch=True), 'by_epoch'),
    ],
)
def test_bad_numbers(change, word):
    numbers = {**dict(warmup_iters=1, cosine_begin=2, cosine_end=3), **change}
    with pytest.raises(ValueError, match=word):
        FlatCosineLR(two_groups(), **numbers)
