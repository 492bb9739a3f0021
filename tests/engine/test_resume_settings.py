"""A resumed run does what its own settings say, from the epoch on that it goes on from."""

import shutil

from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.engine import DEIMRunner

import pytest
import torch
import toy
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.logging import MMLogger

pytestmark = pytest.mark.slow

EPOCHS = 8
AT = 3


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Folder of a data set and of a training of three epochs out of eight."""
    folder = tmp_path_factory.mktemp('settings')
    toy.write_data_set(folder)
    train(
        folder,
        'first',
        folder / 'work',
        **{'train_cfg.max_epochs': AT, 'recipe.epochs': AT, 'recipe.stages': (1, 2, AT)},
    )
    return folder


@HOOKS.register_module()
class RecordRatesHook(Hook):
    """Keeps the learning rates, and momenta, of all parameter groups, by iteration."""

    def before_train(self, runner):
        runner.rates, runner.momenta = {}, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        groups = runner.optim_wrapper.param_groups
        runner.rates[runner.iter] = [g['lr'] for g in groups]
        runner.momenta[runner.iter] = [g.get('momentum') for g in groups]


def train(folder, name, work_dir, **options):
    options = {'train_cfg.max_epochs': EPOCHS, 'train_cfg.val_interval': 20, **options}
    cfg = toy.in_process(folder, name, work_dir=str(work_dir), **options)
    cfg.custom_hooks += [dict(type='RecordRatesHook')]
    runner = DEIMRunner.from_cfg(cfg)
    runner.train()
    return runner


SETTINGS = {
    'rate': {'optim_wrapper.optimizer.lr': 5e-5},
    'batch': {'train_dataloader.batch_size': 4},
    'epochs': {'train_cfg.max_epochs': 6},
    'decay': {'optim_wrapper.optimizer.weight_decay': 0.5},
    'accumulation': {'optim_wrapper.accumulative_counts': 2},
    'rule': {'auto_scale_lr.enable': False, 'train_dataloader.batch_size': 4},
}


@pytest.mark.parametrize('options', SETTINGS.values(), ids=SETTINGS)
def test_rest_of_the_schedule_is_that_of_a_new_run(trained, tmp_path, request, options):
    """Compared with a run that had these settings from its first iteration on."""
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    new = train(trained, f'{request.node.name}_new', whole, **options)
    runner = train(
        trained, f'{request.node.name}_resumed', resumed, resume=True,
        load_from=str(trained / 'work' / f'epoch_{AT}.pth'), **options,
    )  # fmt: skip
    first = AT * len(runner.train_dataloader)
    assert min(runner.rates) == first
    assert runner.rates == {i: rates for i, rates in new.rates.items() if i >= first}
    assert runner.iter == new.iter
    groups = [
        [
            {k: v for k, v in group.items() if k != 'params'}
            for group in r.optim_wrapper.param_groups
        ]
        for r in (new, runner)
    ]
    assert groups[0] == groups[1]
    assert runner.recipe == new.recipe
    ema = [
        next(hook.ema_model for hook in r.hooks if hasattr(hook, 'ema_model'))
        for r in (new, runner)
    ]
    assert ema[0].decay == ema[1].decay
    assert int(ema[0].steps) == int(ema[1].steps)


def steps_at(*milestones):
    """Schedulers of mmengine: a warm-up, steps, and a momentum that falls."""
    by_epoch = dict(by_epoch=True, convert_to_iter_based=True)
    return [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
        dict(type='MultiStepLR', milestones=milestones, gamma=0.1, by_epoch=True),
        dict(type='CosineAnnealingMomentum', eta_min=0.5, **by_epoch),
    ]


@pytest.mark.parametrize(
    ('milestones', 'options'),
    [((3, 5), {}), ((4, 5), {}), ((3, 5), {'train_dataloader.batch_size': 4})],
    ids=['epochs', 'milestones', 'batch'],
)
def test_schedulers_of_mmengine_follow_the_config(milestones, options, trained, tmp_path, request):
    """Each resumed run has two epochs more than the first one, and so a longer cosine."""
    sgd = dict(_delete_=True, type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0)
    options = {'optim_wrapper.optimizer': sgd, **options}
    hooks = [dict(type='ExpWarmupEMAHook')]

    def run(name, epochs, milestones, **changes):
        changes = {'train_cfg.max_epochs': epochs, 'custom_hooks': hooks, **changes}
        return train(
            trained, f'{request.node.name}_{name}', tmp_path / name,
            param_scheduler=steps_at(*milestones), **changes,
        )  # fmt: skip

    run('first', 4, (3, 5), **{'optim_wrapper.optimizer': sgd})
    new = run('new', 6, milestones, **options)
    path = str(tmp_path / 'first' / 'epoch_2.pth')
    resumed = run('resumed', 6, milestones, resume=True, load_from=path, **options)
    first = 2 * len(new.train_dataloader)
    assert resumed.rates == {i: rates for i, rates in new.rates.items() if i >= first}
    assert len({rates[0] for rates in resumed.rates.values()}) >= 3
    assert resumed.momenta == {i: m for i, m in new.momenta.items() if i >= first}


def test_a_schedule_that_follows_results_goes_on(trained, tmp_path, request):
    """The first evaluation is the best one: the rate falls after each later one."""

    def run(name, **options):
        plateau = dict(monitor='coco/bbox_mAP', rule='greater', patience=0)
        return train(
            trained, f'{request.node.name}_{name}', tmp_path / name,
            **{
                **toy.scripted([0.5, 0.4, 0.3, 0.2]),
                'recipe.stages': (1, 2, 3),
                'custom_hooks': [dict(type='ScriptHook')],
                'param_scheduler': [dict(type='ReduceOnPlateauLR', **plateau)],
                **options,
            },
        )  # fmt: skip

    new = run('new')
    assert [new.rates[i][0] for i in (4, 8, 12)] == pytest.approx([5e-4, 5e-5, 5e-6])
    path = str(tmp_path / 'new' / 'epoch_2.pth')
    resumed = run('resumed', resume=True, load_from=path, **{'optim_wrapper.optimizer.lr': 5e-3})
    assert min(resumed.rates) == 8
    for iteration, rates in resumed.rates.items():
        assert rates == pytest.approx([10 * rate for rate in new.rates[iteration]])


def test_changes_are_named_in_the_log(trained, tmp_path, request):
    train(
        trained, request.node.name, tmp_path, resume=True,
        load_from=str(trained / 'work' / f'epoch_{AT}.pth'),
        **{'optim_wrapper.optimizer.lr': 5e-5, 'train_dataloader.batch_size': 4},
    )  # fmt: skip
    log = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert (
        'Resumed after epoch 3 with other settings than before: epochs 3 -> 8, iterations an epoch '
        '4 -> 2, images per optimiser step 2 -> 4, learning rate 0.0005 -> 0.0001.'
    ) in log


def test_nothing_is_said_where_nothing_has_changed(trained, tmp_path, request):
    shutil.copytree(trained / 'work', tmp_path / 'work')
    train(
        trained, request.node.name, tmp_path / 'work', resume=True,
        **{'train_cfg.max_epochs': AT, 'recipe.epochs': AT, 'recipe.stages': (1, 2, AT)},
    )  # fmt: skip
    log = ''.join(path.read_text() for path in (tmp_path / 'work').glob('*/*.log'))
    assert 'other settings' not in log
    assert '3 finished epochs and train_cfg.max_epochs=3: nothing is left to train' in log


def test_checkpoint_of_an_older_version_is_counted_by_its_iterations(trained, tmp_path, request):
    """It doesn't hold the settings."""
    path = tmp_path / 'epoch_3.pth'
    checkpoint = torch.load(trained / 'work' / 'epoch_3.pth', weights_only=False)
    del checkpoint['message_hub']['runtime_info']['settings']
    torch.save(checkpoint, path)
    runner = train(
        trained, request.node.name, tmp_path / 'work', resume=True, load_from=str(path),
        **{'train_dataloader.batch_size': 4},
    )  # fmt: skip
    assert min(runner.rates) == 3 * 2
    assert runner.iter == EPOCHS * 2


def test_an_epoch_that_a_checkpoint_was_saved_within_begins_again(trained, tmp_path, request):
    """As ``CheckpointHook(by_epoch=False)`` saves it; mmengine would go on counting from there."""
    path = tmp_path / 'iter_10.pth'
    checkpoint = torch.load(trained / 'work' / 'epoch_2.pth', weights_only=False)
    assert checkpoint['meta']['iter'] == 8
    checkpoint['meta']['iter'] += 2
    torch.save(checkpoint, path)
    runner = train(trained, request.node.name, tmp_path / 'work', resume=True, load_from=str(path))
    assert min(runner.rates) == 8
    assert runner.iter == EPOCHS * 4


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (
            {'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=0.1, weight_decay=0.0)},
            r'state of AdamW, but optim_wrapper\.optimizer is SGD.*cannot change.*load_from',
        ),
        (
            {'optim_wrapper.paramwise_cfg': dict(rules=[dict(name='x', lr_mult=2.0)])},
            r'parameters in other groups.*paramwise_cfg.*load_from',
        ),
    ],
    ids=['optimizer', 'groups'],
)
def test_what_cannot_change_is_refused(trained, tmp_path, request, options, words):
    with pytest.raises(ValueError, match=words):
        train(
            trained, request.node.name, tmp_path, resume=True,
            load_from=str(trained / 'work' / f'epoch_{AT}.pth'), **options,
        )  # fmt: skip


def test_table_shows_the_numbers_in_force(trained, tmp_path, request):
    cfg = toy.in_process(
        trained, request.node.name, work_dir=str(tmp_path),
        **{'train_cfg.max_epochs': EPOCHS, 'train_cfg.val_interval': 20},
    )  # fmt: skip
    cfg.param_scheduler = [dict(type='FlatCosineLR', warmup_iters=3, lr_gamma=0.25)]
    cfg.custom_hooks = [
        dict(type='DenseO2OScheduleHook', stages=(0, 1, 2)),
        dict(type='ExpWarmupEMAHook', decay=0.5),
    ]
    runner = DEIMRunner.from_cfg(cfg)
    runner.train()
    recipe = runner.recipe
    assert (recipe.warmup_iters, recipe.lr_gamma, recipe.stages) == (3, 0.25, (0, 1, 2))
    assert (recipe.ema_decay, recipe.ema_restart_decay) == (0.5, None)
    log = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    rows = dict(
        line.rsplit('  ', 1) for line in log.splitlines() if '  ' in line and len(line) > 60
    )
    in_force = {name.split('  ')[0].strip(): value.strip() for name, value in rows.items()}
    assert in_force['learning-rate warm-up, iterations'].startswith('3 ')
    assert in_force['learning rate at the end'] == 'x 0.25'
    assert in_force['first epoch of dense, flat, no-augmentation stage'] == '0, 1, 2'
    assert in_force['EMA decay'] == '0.5'
    assert in_force['EMA decay from the restart on'] == 'not used'


@pytest.mark.parametrize('keep_original', [True, False])
def test_copied_or_moved_work_directory_resumes_from_its_own_files(
    trained, tmp_path, request, keep_original, forget_visualizers
):
    first, second = tmp_path / 'first', tmp_path / 'second'
    scores = toy.scripted([0.5, 0.1, 0.2, 0.3])
    scores['recipe.stages'] = (1, 2, 3)
    train(
        trained,
        f'{request.node.name}_1',
        first,
        **{**scores, 'recipe.epochs': 4, 'train_cfg.max_epochs': 4},
    )
    shutil.copytree(first, second)
    if not keep_original:
        shutil.rmtree(first)
    before = {path: path.stat().st_mtime_ns for path in first.rglob('*')}
    scores = toy.scripted([0.5, 0.1, 0.2, 0.3, 0.9, 0.1, 0.1, 0.1])
    # A new process knows neither visualiser nor logger of the first one.
    forget_visualizers()
    MMLogger._instance_dict.clear()
    runner = train(trained, f'{request.node.name}_2', second, resume=True, **scores)
    assert runner.epoch == 8
    assert {path: path.stat().st_mtime_ns for path in first.rglob('*')} == before
    saved = torch.load(second / 'epoch_8.pth', weights_only=False)
    info = saved['message_hub']['runtime_info']
    assert info['best_ckpt'] == str(second / 'best_coco_bbox_mAP_epoch_5.pth')
    # The copy of the former best one has gone as it would have in the original.
    assert not (second / 'best_coco_bbox_mAP_epoch_1.pth').exists()


def test_resumes_with_another_number_of_processes(trained, tmp_path):
    """Two processes have half the iterations, and twice the images in each."""
    config = toy.write_config(trained, **{'train_cfg.max_epochs': 4, 'train_cfg.val_interval': 20})
    shutil.copytree(trained / 'work', tmp_path / 'work')
    options = ('--work-dir', tmp_path / 'work', '--resume', '--launcher', 'pytorch')
    log = toy.train(config, *options, launcher=toy.two_processes())
    assert 'iterations an epoch 4 -> 2, images per optimiser step 2 -> 4, processes 1 -> 2' in log
    saved = read_checkpoint(tmp_path / 'work' / 'epoch_4.pth')
    assert (saved['meta']['epoch'], saved['meta']['iter']) == (4, 8)
