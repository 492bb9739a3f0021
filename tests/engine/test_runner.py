import json
import os
import shutil

from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.engine import NonFiniteLossError
from deim_mmdet.engine import runner as runner_module
from deim_mmdet.utils import Stage

import pytest
import torch
import toy
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

pytestmark = pytest.mark.slow

SINGLE_HOOKS = (
    'DenseO2OScheduleHook', 'ExpWarmupEMAHook', 'EMARestartHook', 'NonFiniteLossHook'
)  # fmt: skip


def edit_annotations(folder, change):
    path = folder / 'all.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_recipe_reaches_optimiser_scheduler_ema_and_stages(make_runner):
    runner = make_runner(**{'train_dataloader.batch_size': 4, 'train_cfg.max_epochs': 4})
    runner.train()
    recipe = runner.recipe
    # Twice the published batch, half the published epochs.
    assert recipe.lr_scale == 2
    assert recipe.stages == (1, 2, 3)
    assert recipe.warmup_iters == round(6 * 0.5 / 2)
    (scheduler,) = runner.param_schedulers
    assert scheduler.base_values == pytest.approx([1e-3] * len(scheduler.base_values))
    assert (scheduler.warmup_iters, scheduler.cosine_begin) == (2, 4)
    hooks = {type(hook).__name__: hook for hook in runner.hooks}
    assert hooks['DenseO2OScheduleHook'].stages == (1, 2, 3)
    ema = hooks['ExpWarmupEMAHook'].ema_model
    assert ema.decay == pytest.approx(1 - 0.1 * 4)
    assert ema.warmup_iters == pytest.approx(5 / 4)
    assert int(ema.steps) == 8


def test_batch_size_rule_can_be_switched_off(make_runner):
    runner = make_runner(**{'train_dataloader.batch_size': 4, 'auto_scale_lr.enable': False})
    runner.train()
    assert runner.recipe.lr_scale == 1
    assert runner.param_schedulers[0].base_values[0] == pytest.approx(5e-4)


def test_explicit_numbers_win(make_runner):
    runner = make_runner(
        param_scheduler=[dict(type='FlatCosineLR', warmup_iters=3)],
        custom_hooks=[
            dict(type='DenseO2OScheduleHook', stages=(0, 1, 2)),
            dict(type='ExpWarmupEMAHook', decay=0.5),
        ],
    )
    runner.train()
    assert runner.param_schedulers[0].warmup_iters == 3
    hooks = {type(hook).__name__: hook for hook in runner.hooks}
    assert hooks['DenseO2OScheduleHook'].stages == (0, 1, 2)
    assert hooks['ExpWarmupEMAHook'].ema_model.decay == 0.5


@pytest.mark.parametrize('stages', [(0, 1, 3), (0, 0, 3)], ids=['dense', 'plain'])
def test_the_rate_follows_stages_of_the_configs_own(make_runner, stages):
    """The rate is flat up to the second number, or without a dense stage up to the third."""
    runner = make_runner()
    hooks = {type(hook).__name__: hook for hook in runner.hooks}
    hooks['DenseO2OScheduleHook'].stages = stages
    runner.train()
    assert runner.recipe.stages == stages
    (scheduler,) = runner.param_schedulers
    flat = stages[1] or 3
    assert (scheduler.cosine_begin, scheduler.cosine_end) == (4 * flat, 4 * 3)


def test_stages_reach_a_data_set_that_is_cut_to_some_batches(make_runner):
    runner = make_runner(**{'train_dataloader.num_batch_per_epoch': 2})
    (transform,) = (
        part for part in runner.train_dataloader.dataset.pipeline if hasattr(part, 'set_stage')
    )
    runner.train()
    assert runner.iter == 8
    assert transform.stage == Stage.NO_AUG


@pytest.mark.parametrize(
    'second',
    [
        dict(type='ExpWarmupEMAHook', decay=0.5),
        dict(type='EMAHook'),
        dict(type='DenseO2OScheduleHook', stages=(0, 1, 2)),
        dict(type='EMARestartHook', begin=3),
        dict(type='NonFiniteLossHook', skip_non_finite=3),
    ],
    ids=lambda hook: hook['type'],
)
def test_two_hooks_for_one_work_are_refused(make_runner, second):
    """Two averages would each hold the other's weights, or the model's, after an evaluation."""
    hooks = [dict(type=name) for name in SINGLE_HOOKS]
    with pytest.raises(ValueError, match=rf'{second["type"]}.* do the same work.*_base_'):
        make_runner(custom_hooks=[*hooks, second])


def test_several_optimisers_are_refused(make_runner):
    runner = make_runner()
    optimizers = {name: runner.build_optim_wrapper(runner.optim_wrapper) for name in ('one', 'two')}
    with pytest.raises(TypeError, match='DEIMRunner works with one optimiser, but optim_wrapper'):
        runner.build_optim_wrapper(OptimWrapperDict(**optimizers))


def test_plain_numbers_without_recipe(make_runner):
    runner = make_runner(
        recipe=None,
        auto_scale_lr=None,
        param_scheduler=[
            dict(type='FlatCosineLR', warmup_iters=2, cosine_begin=6, cosine_end=12, by_epoch=False)
        ],
        custom_hooks=[dict(type='DenseO2OScheduleHook', stages=(1, 2, 3))],
    )
    runner.train()
    assert runner.recipe is None
    assert runner.iter == 16


@pytest.mark.parametrize('own', [{}, dict(recipe=None, auto_scale_lr=None, param_scheduler=None)])
def test_an_optimiser_with_one_group_of_parameters(make_runner, own):
    """As without ``paramwise_cfg``; mmengine keeps no numbers beside it then."""
    optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02))
    runner = make_runner(**own, custom_hooks=[], optim_wrapper=optim_wrapper)
    runner.train()
    assert len(runner.optim_wrapper.optimizer.param_groups) == 1
    saved = read_checkpoint(f'{runner.work_dir}/epoch_4.pth')['message_hub']['runtime_info']
    assert saved['settings']['lr'] == 0.02


@pytest.mark.parametrize('device', ['cpu', 'mps', 'cuda', 'npu'])
def test_batches_are_pinned_for_devices_that_take_them(make_runner, monkeypatch, recwarn, device):
    monkeypatch.setattr(runner_module, 'get_device', lambda: device)
    pinned = device in ('cuda', 'npu')
    runner = make_runner(**{'val_dataloader.pin_memory': not pinned})
    loader = runner.build_dataloader(runner.cfg.train_dataloader)
    assert loader.pin_memory == pinned
    assert runner.build_dataloader(runner.cfg.val_dataloader).pin_memory == (not pinned)
    if device == 'cpu':
        batch = next(iter(loader))
        assert batch['inputs'].is_contiguous(memory_format=torch.channels_last)
        assert not [w for w in recwarn if 'pin_memory' in str(w.message)]


@pytest.mark.parametrize('drop_last', [True, False])
def test_a_batch_sampler_takes_the_loaders_choice_of_the_last_batch(make_runner, drop_last):
    options = dict(batch_sampler=dict(type='AspectRatioBatchSampler'), drop_last=drop_last)
    runner = make_runner(**{f'train_dataloader.{name}': o for name, o in options.items()})
    loader = runner.build_dataloader({**runner.cfg.train_dataloader, 'batch_size': 3})
    full, rest = divmod(len(loader.dataset), 3)
    sizes = [3] * full + [rest] * (rest > 0 and not drop_last)
    assert rest
    assert [len(batch) for batch in loader.batch_sampler] == sizes


def test_mixed_precision_on_the_cpu(make_runner):
    runner = make_runner(
        **{'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 'dynamic'}
    )
    runner.train()
    assert type(runner.optim_wrapper).__name__ == 'CpuAmpOptimWrapper'


@pytest.mark.parametrize('loop', ['val', 'test'])
def test_evaluation_in_half_precision(make_runner, monkeypatch, loop):
    runner = make_runner(custom_hooks=[], **{f'{loop}_cfg.fp16': True})
    seen = []

    def predict(self, inputs, data_samples, rescale=True):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        seen.append((self.training, product.dtype))
        return whole(self, inputs, data_samples, rescale)

    whole = toy.ToyDetector.predict
    monkeypatch.setattr(toy.ToyDetector, 'predict', predict)
    figures = getattr(runner, loop)()
    assert {*seen} == {(False, torch.bfloat16)}
    assert 'coco/bbox_mAP' in figures


def test_what_a_gpu_gets_by_default(make_runner, monkeypatch):
    """The defaults in force in a whole training; the CPU does the work."""
    precision = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    monkeypatch.setattr(runner_module, 'get_device', lambda: 'cuda')
    try:
        runner = make_runner(**{'train_dataloader.pin_memory': False})
        assert torch.get_float32_matmul_precision() == 'high'
        assert torch.backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision(precision)
    runner.train()
    assert all(group['fused'] for group in runner.optim_wrapper.param_groups)
    (conv,) = (m for m in runner.model.modules() if isinstance(m, torch.nn.Conv2d))
    state = runner.optim_wrapper.optimizer.state[conv.weight]
    average = next(h.ema_model for h in runner.hooks if hasattr(h, 'ema_model')).module.backbone[0]
    for tensor in (conv.weight, average.weight, state['exp_avg'], state['exp_avg_sq']):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_bad_loss_stops_and_names_term_and_image(make_runner):
    runner = make_runner(**{'model.bad_image': '3.png'})
    with pytest.raises(NonFiniteLossError, match=r'loss_cls = nan.*3\.png'):
        runner.train()


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'train_cfg.max_epochs': 3}, ['max_epochs=3', 'at least 4']),
        ({'model.bbox_head.num_classes': 3}, ['num_classes=3', '2 classes', 'disc, ring']),
        ({'model.bbox_head.num_queries': 1}, ['.png has 2 objects', '1 queries', 'num_queries']),
        ({'train_dataloader.batch_size': 9}, ['8 images', 'batch_size']),
        ({'auto_scale_lr': None}, ['base_batch_size']),
        ({'recipe.warm_up': 3}, ['recipe', 'warm_up']),
        ({'recipe': None}, ['FlatCosineLR has no warmup_iters', 'a recipe in the config']),
        (
            {'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=8)},
            ['recipe counts epochs', 'IterBasedTrainLoop', 'max_epochs=...', 'recipe=None'],
        ),
        (
            {'train_dataloader.dataset.dataset.ann_file': 'none.json'},
            ['none.json', 'ann_file'],
        ),
    ],
    ids=['epochs', 'classes', 'queries', 'batch', 'base', 'recipe', 'none', 'loop', 'annotations'],
)
def test_bad_input_stops_before_training(make_runner, tmp_path, options, words):
    runner = make_runner(**options)
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as error:
        runner.train()
    for word in words:
        assert word in str(error.value)
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_classes_of_the_test_set_are_compared(make_runner, tmp_path):
    runner = make_runner(**{'model.bbox_head.num_classes': 3})
    with pytest.raises(ValueError, match=r'num_classes=3.*test data set'):
        runner.test()


def test_ignored_objects_need_no_query(make_runner, tmp_path):
    def change(content):
        for annotation in content['annotations'][::2]:
            annotation['iscrowd'] = 1

    edit_annotations(tmp_path, change)
    runner = make_runner(**{'model.bbox_head.num_queries': 1, 'train_cfg.max_epochs': 4})
    runner.train()


def test_checkpoint_of_other_classes(make_runner, tmp_path):
    make_runner().train()
    edit_annotations(
        tmp_path, lambda content: content['categories'].append(dict(id=3, name='star'))
    )
    runner = make_runner(
        **{'model.bbox_head.num_classes': 3, 'load_from': str(tmp_path / 'work' / 'epoch_4.pth')}
    )
    with pytest.raises(ValueError, match=r'trained for 2 classes.*num_classes=3'):
        runner.test()


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda s: {f'decoder.{k}': v for k, v in s.items()}, 'no parameter of this model'),
        (
            lambda s: {**s, 'backbone.0.weight': torch.zeros(7, 3, 3, 3)},
            r'backbone\.0\.weight: \(7, 3, 3, 3\) instead of \(4, 3, 3, 3\)',
        ),
    ],
    ids=['names', 'shapes'],
)
def test_checkpoint_of_another_model(make_runner, tmp_path, change, words):
    runner = make_runner()
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict=change(runner.model.state_dict())), path)
    with pytest.raises(ValueError, match=words):
        runner.load_checkpoint(str(path))


class Foreign:
    pass


def test_checkpoint_with_another_type_is_refused(make_runner, tmp_path):
    runner = make_runner()
    path = tmp_path / 'foreign.pth'
    torch.save(dict(state_dict=runner.model.state_dict(), extra=Foreign()), path)
    with pytest.raises(RuntimeError, match=r'foreign\.pth.*Foreign.*refused'):
        runner.load_checkpoint(str(path))


class RunsCode:
    """Pickles as a call of ``os.mkdir``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('way', ['load_checkpoint', 'resume'])
def test_a_malicious_checkpoint_runs_nothing(make_runner, tmp_path, way):
    """Some loaders of the stacks fall back to plain unpickling, which runs what a file says."""
    path, trap = tmp_path / 'evil.pth', tmp_path / 'created'
    runner = make_runner()
    evil = dict(state_dict=runner.model.state_dict(), meta={}, message_hub=RunsCode(trap))
    torch.save(evil, path)
    with pytest.raises(RuntimeError, match=r'evil\.pth .*mkdir.* refused'):
        getattr(runner, way)(str(path))
    assert not trap.exists()
    # The trap works: plain unpickling falls into it.
    torch.load(path, weights_only=False)
    assert trap.exists()


def test_interrupted_save_leaves_the_last_checkpoint(make_runner, tmp_path, monkeypatch):
    runner = make_runner()
    runner.train()
    work_dir = tmp_path / 'work'
    before = (work_dir / 'epoch_4.pth').read_bytes()
    seen = []

    def crash(source, target):
        seen.append((os.path.basename(source), os.path.basename(target)))
        # All of it is on the disk already, under the temporary name.
        read_checkpoint(source)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', crash)
        with pytest.raises(KeyboardInterrupt):
            runner.save_checkpoint(str(work_dir), 'epoch_4.pth')
    assert [target for _, target in seen] == ['epoch_4.pth']
    assert (work_dir / 'epoch_4.pth').read_bytes() == before


def test_pointer_names_a_whole_checkpoint_at_any_moment(
    make_runner, tmp_path, around_changes_of_names
):
    """With only one kept, the old one goes after the pointer names the new one."""
    work_dir = tmp_path / 'work'
    checked = []

    def check():
        pointer = work_dir / 'last_checkpoint'
        if pointer.exists():
            read_checkpoint(pointer.read_text())
            checked.append(pointer.read_text())

    around_changes_of_names(check)
    make_runner(**{'default_hooks.checkpoint.max_keep_ckpts': 1}).train()
    assert sorted({os.path.basename(path) for path in checked}) == [
        f'epoch_{n}.pth' for n in (1, 2, 3, 4)
    ]
    assert [path.name for path in work_dir.glob('epoch_*.pth')] == ['epoch_4.pth']


def test_resume_without_checkpoint_starts_anew(make_runner, tmp_path):
    shutil.rmtree(tmp_path / 'work', ignore_errors=True)
    runner = make_runner(resume=True)
    runner.train()
    assert runner.iter == 16


def test_convolutions_are_laid_out_channels_last_on_a_cpu(make_runner):
    runner = make_runner()
    weights = [m.weight for m in runner.model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.parametrize(
    ('device', 'wrapper'), [('npu', 'AmpOptimWrapper'), ('cpu', 'CpuAmpOptimWrapper')]
)
def test_another_accelerator_is_not_taken_for_a_cpu(make_runner, monkeypatch, device, wrapper):
    monkeypatch.setattr('deim_mmdet.engine.runner.get_device', lambda: device)
    runner = make_runner()
    weights = [m.weight for m in runner.model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert weights[0].is_contiguous() == (device != 'cpu')
    monkeypatch.setattr(Runner, 'build_optim_wrapper', lambda self, config: config['type'])
    assert runner.build_optim_wrapper(dict(type='AmpOptimWrapper')) == wrapper
