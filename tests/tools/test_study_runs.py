"""What the runs of the convergence study train. Their configs are read, nothing is trained."""

from deim_mmdet.engine.config import load_config

import pytest


@pytest.fixture(scope='module')
def study(load_tool):
    return load_tool('analysis/convergence_study.py').study_runs


@pytest.mark.parametrize('data', ['sparse', 'crowded', 'bccd'])
def test_configs_differ_in_their_parts_alone(study, repo_root, data):
    """What is on in each variant; everything else is word for word the same."""
    losses = {'MatchabilityAwareLoss': True, 'VarifocalQualityLoss': False}
    rest = []
    for variant in study.VARIANTS:
        path = repo_root / f'configs/convergence/study_{data}_{variant}.py'
        cfg = load_config(str(path)).to_dict()
        loss = cfg['model']['bbox_head']['criterion']['terms'].pop('loss_cls')['loss']
        t1, t2, _ = cfg['recipe']['stages']
        cfg['recipe']['stages'] = cfg['recipe']['stages'][2]
        assert losses[loss['type']] == (variant in ('mal', 'deim'))
        assert (t2 > t1) == (variant in ('dense_o2o', 'deim'))
        cfg.pop('work_dir', None)
        rest.append(cfg)
    assert all(cfg == rest[0] for cfg in rest)


def test_every_run_has_its_config_and_the_same_iterations(study, repo_root):
    runs = study.plan([0, 1])
    names = [run.name for run in runs]
    assert len(names) == len(set(names)) == 2 * (2 + 2 * 3 * 4)
    large = study.plan_large([0, 1])
    names += [run.name for run in large]
    assert len(names) == len(set(names)) == len(runs) + 2 * (2 * 2 * 2)
    assert {run.iterations for run in large} == {15000, 30000}
    starts = study.plan_starts([0, 1], 'digits1k')
    # 1 that makes the weights; 3 sizes, 3 lengths: 4 variants twice, 1 with a frozen backbone.
    assert len({run.name for run in starts}) == len(starts) == 1 + 2 * (3 * 3 * (4 + 4 + 1))
    assert study.PRETRAINING['digits20k'] in large
    for run in [*runs, *large, *starts]:
        assert (repo_root / 'configs/convergence' / run.config).is_file()
        assert run.epochs % run.val_interval == 0
        command = run.command(repo_root)
        assert f'randomness.seed={run.seed}' in command
        assert '--resume' in command
    evaluations = {'brief': 3, 'short': 20, 'long': 20}
    for budget, iterations in study.FEW_BUDGETS.items():
        for run in [*runs, *starts]:
            if f'_{budget}_' in run.name:
                assert run.iterations == pytest.approx(iterations, rel=0.03)
                assert run.epochs / run.val_interval >= min(run.epochs, evaluations[budget])


@pytest.mark.parametrize(
    ('weights', 'made_by'),
    [
        ('digits1k', 'crowded1k_deim_seed0/epoch_4.pth'),
        ('digits20k', 'crowded20k_short_deim_seed0/epoch_6.pth'),
    ],
)
def test_starts_differ_in_weights_frozen_stages_and_images_alone(study, tmp_path, weights, made_by):
    """Next to the run from nothing on all images, of the same length, variant and seed."""
    start, *runs = study.plan_starts([0, 2], weights)
    assert made_by.startswith(f'{start.name}/')
    plain = {run.name: run for run in study.plan([0, 2])}
    plain |= {run.name: run for run in runs if not run.start}
    load_from = {'load_from': tmp_path / made_by}
    for run in runs:
        data, budget, rest = run.name.split('_', 2)
        variant, seed = rest[: rest.rindex('_')], run.seed
        further = {}
        if variant.endswith('_frozen'):
            variant = variant.removesuffix('_frozen')
            further = {'model.backbone.frozen_stages': 4}
        if variant.endswith(f'_{weights}'):
            variant = variant.removesuffix(f'_{weights}')
            further |= load_from
        if images := data.removeprefix('bccd'):
            further |= {'train_dataloader.dataset.dataset.indices': int(images)}
        reference = plain[f'bccd_{budget}_{variant}_seed{seed}']
        assert run.config == reference.config
        expected = reference.options(tmp_path) | further
        for key in ('train_cfg.max_epochs', 'train_cfg.val_interval'):
            expected[key] = run.options(tmp_path)[key]
        assert run.options(tmp_path) == expected
