import dataclasses

from deim_mmdet.engine.recipe import (
    PublishedRecipe,
    derive_recipe,
    derive_stages,
    format_recipe,
    regime_note,
)

import pytest
from schedules import MODELS, published_numbers

L = PublishedRecipe(epochs=58, batch_size=32, stages=(4, 29, 50), warmup_iters=2000)
BASELINE = PublishedRecipe(
    epochs=80, batch_size=32, stages=(0, 0, 72), warmup_iters=500, lr_gamma=1
)
# DEIMv2 Pico, and ECDet S.
PICO = PublishedRecipe(
    epochs=500,
    batch_size=128,
    stages=(4, 250, 400),
    warmup_iters=4000,
    restart_epoch=468,
    matcher_change_epoch=450,
)
ECDET = PublishedRecipe(
    epochs=74, batch_size=32, stages=(0, 36, 72), warmup_iters=2000, kind='edgecrafter'
)


def derive_published(published, **changes):
    arguments = dict(
        epochs=published.epochs,
        batch_size=published.batch_size,
        iters_per_epoch=published.iters_per_epoch,
    )
    return derive_recipe(published, **{**arguments, **changes})


@pytest.mark.parametrize('model', MODELS)
def test_published_run_gets_published_numbers(model):
    published = PublishedRecipe(**published_numbers(model))
    recipe = derive_published(published)
    assert recipe.stages == published.stages
    assert recipe.lr_scale == 1
    assert recipe.warmup_iters == published.warmup_iters
    assert recipe.ema_decay == published.ema_decay
    assert recipe.ema_warmup_iters == published.ema_warmup_iters
    assert recipe.ema_restart_decay == published.ema_restart_decay
    assert recipe.ema_restart_step == (1e-4 if published.kind == 'deim' else None)
    assert recipe.restart_epoch == (published.restart_epoch or published.stages[2])
    assert recipe.matcher_change_epoch == published.matcher_change_epoch
    assert recipe.cosine_end == recipe.restart_epoch * published.iters_per_epoch
    if published.dense:
        assert recipe.cosine_begin == published.stages[1] * published.iters_per_epoch


@pytest.mark.parametrize('model', ['deim_dfine_l', 'deim_dfine_m', 'deim_dfine_s', 'deim_dfine_n'])
def test_stages_follow_the_papers_formula(model):
    numbers = published_numbers(model)
    epochs, (t1, t2, t3) = numbers['epochs'], numbers['stages']
    assert (t1, t2) == (4, 4 + t3 // 2)
    published = PublishedRecipe(**numbers)
    # Longer runs keep the four epochs and the share of the last stage.
    longer = derive_stages(published, 2 * epochs)
    assert longer == (4, 4 + t3, 2 * t3)


@pytest.mark.parametrize('k', [0.25, 0.5, 2, 4])
def test_batch_size_scales_rates_and_durations(k):
    recipe = derive_published(
        L, batch_size=int(32 * k), iters_per_epoch=round(L.iters_per_epoch / k)
    )
    assert recipe.lr_scale == k
    assert recipe.warmup_iters == pytest.approx(2000 / k)
    assert recipe.ema_decay == pytest.approx(1 - (1 - 0.9999) * k, rel=1e-9)
    assert recipe.ema_warmup_iters == pytest.approx(1000 / k)
    assert recipe.stages == L.stages


def test_batch_size_rule_can_be_switched_off():
    recipe = derive_published(L, batch_size=16, iters_per_epoch=7392, scale_by_batch=False)
    assert recipe.lr_scale == 1
    assert recipe.warmup_iters == 2000
    assert recipe.ema_decay == 0.9999


@pytest.mark.parametrize('published', [L, BASELINE], ids=['deim', 'baseline'])
@pytest.mark.parametrize(
    ('epochs', 'batch_size', 'iters'), [(12, 8, 25), (58, 32, 6), (132, 4, 51), (24, 64, 300)]
)
def test_small_data_set_keeps_shares(published, epochs, batch_size, iters):
    recipe = derive_recipe(published, epochs, batch_size, iters)
    total, published_total = epochs * iters, published.epochs * published.iters_per_epoch
    assert recipe.warmup_iters == pytest.approx(
        published.warmup_iters / published_total * total, abs=0.5
    )
    assert recipe.ema_warmup_iters / total == pytest.approx(1000 / published_total)
    horizon = 1 / (1 - recipe.ema_decay)
    assert horizon / total == pytest.approx(max(10000 / published_total, 1 / total), rel=1e-6)


@pytest.mark.parametrize('scale_by_batch', [True, False])
@pytest.mark.parametrize(
    ('epochs', 'batch_size', 'iters', 'accumulation'),
    [(12, 8, 2500, 1), (58, 32, 6000, 1), (24, 64, 900, 2), (58, 64, 1848, 1), (90, 16, 7392, 1)],
)
def test_decay_after_each_restart_is_scaled_as_the_decay(
    epochs, batch_size, iters, accumulation, scale_by_batch
):
    """A recipe published with the decay that the n-th restart reaches would get it derived."""
    x = dataclasses.replace(L, ema_restart_decay=0.9998)
    arguments = (epochs, batch_size, iters, accumulation, scale_by_batch)
    recipe = derive_recipe(x, *arguments)
    for restarts in (0, 1, 2, 5):
        published = dataclasses.replace(L, ema_decay=0.9998 - restarts * 1e-4)
        expected = derive_recipe(published, *arguments).ema_decay
        decay = recipe.ema_restart_decay - restarts * recipe.ema_restart_step
        assert 0 < decay < 1
        assert decay == pytest.approx(expected, rel=1e-9)


def test_longer_run_keeps_durations():
    recipe = derive_published(L, epochs=120)
    assert (recipe.warmup_iters, recipe.ema_decay, recipe.ema_warmup_iters) == (2000, 0.9999, 1000)
    assert (recipe.ema_restart_decay, recipe.ema_restart_step) == (0.9999, 1e-4)


def test_accumulated_iterations_make_one_step():
    whole = derive_recipe(L, 24, 64, 100)
    halved = derive_recipe(L, 24, 64, 200, accumulation=2)
    assert halved.lr_scale == whole.lr_scale
    assert halved.stages == whole.stages
    assert halved.warmup_iters == pytest.approx(2 * whole.warmup_iters, abs=1)
    assert 1 / (1 - halved.ema_decay) == pytest.approx(2 / (1 - whole.ema_decay))


@pytest.mark.parametrize('model', ['deim_dfine_l', 'deim_dfine_n', 'deim_rtdetrv2_r18'])
@pytest.mark.parametrize('epochs', [*range(4, 60), 100, 131, 161, 300])
def test_every_stage_has_an_epoch(model, epochs):
    t1, t2, t3 = derive_stages(PublishedRecipe(**published_numbers(model)), epochs)
    assert 1 <= t1 < t2 < t3 < epochs
    assert t1 <= 4


@pytest.mark.parametrize('stages', [(0, 1, 2), (1, 2, 3), (100, 101, 119), (0, 118, 119)])
@pytest.mark.parametrize('epochs', [4, 5, 7, 40, 300])
def test_every_stage_of_a_recipe_of_ones_own_has_an_epoch(stages, epochs):
    """Also where one stage takes nearly all of its epochs."""
    t1, t2, t3 = derive_stages(dataclasses.replace(BASELINE, epochs=120, stages=stages), epochs)
    assert 0 <= t1 < t2 < t3 < epochs
    assert (t1 > 0) == (stages[0] > 0)


def test_baseline_has_two_stages():
    assert derive_stages(BASELINE, 20) == (0, 0, 18)
    assert derive_stages(BASELINE, 2) == (0, 0, 1)
    recipe = derive_recipe(BASELINE, 20, 32, 100)
    assert recipe.cosine_begin == recipe.cosine_end == 1800


@pytest.mark.parametrize('epochs', [*range(4, 90), 148, 300])
def test_edgecrafter_keeps_its_two_clean_epochs(epochs):
    """Half of the others are dense, from the first epoch on."""
    assert derive_stages(ECDET, epochs) == (0, (epochs - 2) // 2, epochs - 2)
    recipe = derive_recipe(ECDET, epochs, 32, 100)
    assert (recipe.cosine_begin, recipe.cosine_end) == tuple(100 * e for e in recipe.stages[1:])
    assert recipe.ema_restart_step is None


def test_edgecrafter_has_three_stages():
    assert derive_stages(ECDET, 3) == (0, 1, 2)
    with pytest.raises(ValueError, match=r'for the 3 stages .* at least 3'):
        derive_stages(ECDET, 2)
    # The lengths that were published for other sizes.
    assert derive_stages(ECDET, 62) == (0, 30, 60)
    assert derive_stages(ECDET, 50) == (0, 24, 48)
    without_dense = dataclasses.replace(ECDET, stages=(0, 0, 72))
    assert derive_stages(without_dense, 20) == (0, 0, 18)


@pytest.mark.parametrize('epochs', [*range(4, 60), 100, 250, 499, 501, 1000])
def test_restart_and_matcher_keep_their_shares(epochs):
    recipe = derive_recipe(PICO, epochs, 128, 100)
    t3 = recipe.stages[2]
    assert t3 <= recipe.restart_epoch < epochs
    assert recipe.restart_epoch == pytest.approx(epochs * 468 / 500, abs=1)
    assert recipe.cosine_end == 100 * recipe.restart_epoch
    assert 0 < recipe.matcher_change_epoch < epochs
    assert recipe.matcher_change_epoch == pytest.approx(epochs * 450 / 500, abs=1)


def test_too_few_epochs_name_the_remedy():
    with pytest.raises(ValueError, match=r'max_epochs=3 is too short .* at least 4'):
        derive_recipe(L, 3, 32, 100)
    with pytest.raises(ValueError, match='at least 2'):
        derive_recipe(BASELINE, 1, 32, 100)


@pytest.mark.parametrize(
    ('change', 'word'),
    [
        (dict(stages=(4, 60, 50)), 'stages'),
        (dict(stages=(4, 29, 59)), 'epochs'),
        (dict(ema_decay=1.0), 'ema_decay'),
        (dict(ema_restart_decay=0.0), 'ema_restart_decay'),
        (dict(batch_size=0), 'batch_size'),
        (dict(warmup_iters=-1), 'warmup_iters'),
        (dict(restart_epoch=49), r'restart_epoch=49 must be in \[50, 58\]'),
        (dict(matcher_change_epoch=59), r'matcher_change_epoch=59 must be in \[0, 58\]'),
        (dict(kind='mine'), r"kind='mine' must be one of \('deim', 'edgecrafter'\)"),
        (dict(kind='edgecrafter'), r'no warm-up stage, .* \(0, 28, 56\), with two clean'),
    ],
)
def test_impossible_published_numbers(change, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(L, **change)


def test_table_shows_published_beside_derived():
    table = format_recipe(L, derive_recipe(L, 12, 8, 25), lr=5e-4)
    rows = {line.split('  ')[0]: line for line in table.splitlines()}
    assert rows['epochs'].split()[-2:] == ['58', '12']
    assert '4, 29, 50' in table
    assert '1, 6, 10' in table
    assert '0.0005' in rows['learning rate']
    assert '0.000125 (x 0.25)' in rows['learning rate']
    assert '2000 (0.93 %)' in table
    restart = next(line for line in table.splitlines() if 'restart' in line)
    assert restart.split()[-2:] == ['0.9999', '0.928544']
    step = next(line for line in table.splitlines() if 'no new best' in line)
    assert step.split()[-2:] == ['0.0001', '0.0715']


def test_table_of_a_recipe_without_the_last_stage_has_no_restart():
    published = dataclasses.replace(BASELINE, stages=(0, 0, 80))
    assert 'restart' not in format_recipe(published, derive_recipe(published, 12, 8, 25), lr=1e-4)


def test_table_shows_what_few_recipes_have():
    rows = format_recipe(PICO, derive_recipe(PICO, 50, 128, 100), lr=1e-3).splitlines()
    (restart,) = (row.split()[-2:] for row in rows if row.startswith('epoch of the restart'))
    (matcher,) = (row.split()[-2:] for row in rows if row.startswith('first epoch of the late'))
    assert (restart, matcher) == (['468', '47'], ['450', '45'])
    # It restarts within the last stage, so the table names no stage.
    assert any(row.startswith('EMA decay from the restart on ') for row in rows)
    table = format_recipe(ECDET, derive_recipe(ECDET, 20, 32, 100), lr=1e-3)
    assert '0, 36, 72' in table
    assert '0, 9, 18' in table
    assert 'restart' in table
    assert 'no new best' not in table
    assert 'matcher' not in table


def test_a_run_with_dense_o2o_on_little_data_or_of_little_length_is_warned_of():
    shortest, short, long = (derive_recipe(L, 12, 8, iters) for iters in (25, 125, 250))
    assert '300 iterations and 5000 images' in regime_note(shortest, 5000)
    assert '1500 iterations and 205 images' in regime_note(short, 205)
    assert '3000 iterations and 200 images' in regime_note(long, 200)
    assert regime_note(short, 2000) is None
    assert regime_note(long, 205) is None
    assert regime_note(derive_recipe(BASELINE, 12, 8, 25), 200) is None


@pytest.mark.parametrize('model', MODELS)
def test_no_published_run_is_warned_of(model):
    published = PublishedRecipe(**published_numbers(model))
    assert regime_note(derive_published(published), published.train_images) is None
