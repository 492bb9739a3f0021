"""The demo's first 20 iterations, by every way in which users start a training.

All of them train alike: losses and weights are those of tools/train.py, or a sentence says what to
use instead.
"""

import json
import subprocess
import sys
from pathlib import Path

from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.engine import DEIMRunner, PublishedRecipe, derive_recipe
from deim_mmdet.engine.config import load_config

import mmdet_tools
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from starting import quick_environment
from typed_configs import spelled

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DEMO = ROOT / 'configs' / 'demo' / 'deim_dfine_demo.py'
# 10 images in batches of two, for four epochs: one of each stage.
OPTIONS = {
    'train_cfg.max_epochs': 4,
    'train_cfg.val_interval': 4,
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 0,
    'val_dataloader.num_workers': 0,
    'val_dataloader.batch_size': 10,
    'model.bbox_head.query_selection.num_queries': 20,
    'default_hooks.checkpoint.interval': 4,
}


def run(*command, cwd, expect=0):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=quick_environment(ROOT),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The demo's data set, ten images of it."""
    folder = tmp_path_factory.mktemp('ways')
    run(
        ROOT / 'tools/demo/make_dataset.py', folder / 'data', '--train', 10, '--val', 10,
        '--size', 128, '--objects', 1, 3, '--scale', 0.3, 0.7, '--digits', 0, 2, 3, 4, cwd=folder,
    )  # fmt: skip
    return folder


def config(folder, name):
    cfg = load_config(str(DEMO), {'data_root': str(folder / 'data'), **OPTIONS})
    cfg.work_dir = str(folder / name)
    cfg.experiment_name = name
    cfg.launcher = 'none'
    return cfg


def weights(work_dir):
    checkpoint = read_checkpoint(work_dir / 'epoch_4.pth')
    assert checkpoint['meta']['iter'] == 20
    return checkpoint['state_dict']


def assert_trained_alike(work_dir, expected):
    found = weights(work_dir)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope='module')
def expected(folder):
    """Weights after the training by tools/train.py."""
    options = [f'{key}={value}' for key, value in OPTIONS.items()]
    run(
        ROOT / 'tools/train.py', DEMO, '--work-dir', folder / 'tool',
        '--cfg-options', f'data_root={folder}/data', *options, cwd=folder,
    )  # fmt: skip
    return weights(folder / 'tool')


def test_tool_of_mmdet(folder, expected):
    path = folder / 'dumped.py'
    config(folder, 'mmdet').dump(path)
    run(*mmdet_tools.LAUNCHER, mmdet_tools.TOOLS / 'train.py', path, cwd=folder)
    assert_trained_alike(folder / 'mmdet', expected)


def test_notebook(folder, expected):
    """Cells of one process without a script: two trainings one after the other, then a test."""
    config(folder, 'notebook').dump(folder / 'cells.py')
    code = f"""
import deim_mmdet
from mmengine.config import Config
from mmengine.registry import RUNNERS
for name in ('first', 'second'):
    cfg = Config.fromfile('{folder}/cells.py')
    cfg.work_dir = '{folder}/' + name
    cfg.train_dataloader.update(num_workers=1, persistent_workers=True)
    runner = RUNNERS.build(cfg)
    runner.train()
print('AP', runner.test()['coco/bbox_mAP'])
"""
    assert 'AP 0' in run('-c', code, cwd=folder)
    for name in ('first', 'second'):
        assert_trained_alike(folder / name, expected)


def test_types_as_paths(folder, expected):
    """As a dumped pure-Python config has them."""
    DEIMRunner.from_cfg(Config(spelled(config(folder, 'path').to_dict(), 'path'))).train()
    assert_trained_alike(folder / 'path', expected)


def as_python(node, imports):
    """Source of a config's part whose types are names of imported classes."""
    if isinstance(node, dict):
        entries = (f'{key!r}: {as_python(value, imports)}' for key, value in node.items())
        return f'{{{", ".join(entries)}}}'
    if isinstance(node, list | tuple):
        inner = ''.join(f'{as_python(value, imports)}, ' for value in node)
        return f'[{inner}]' if isinstance(node, list) else f'({inner})'
    if isinstance(node, type):
        imports.add(f'from {node.__module__} import {node.__name__}')
        return node.__name__
    return repr(node)


@pytest.mark.parametrize('base', [(), ('model', 'train_dataloader')], ids=['alone', 'with base'])
def test_pure_python_config(folder, expected, base):
    """mmengine's lazy style: classes in place of names, bases by ``read_base``."""
    name = f'pure_{len(base)}'
    cfg = spelled(config(folder, name).to_dict(), 'class')
    for file, keys in ((f'{name}_base', base), (name, [key for key in cfg if key not in base])):
        imports = set()
        lines = [f'{key} = {as_python(cfg[key], imports)}' for key in keys]
        head = sorted(imports)
        if file == name and base:
            head += ['from mmengine.config import read_base', 'with read_base():']
            head += [f'    from .{name}_base import *']
        (folder / f'{file}.py').write_text('\n'.join([*head, *lines, '']))
    run(ROOT / 'tools/train.py', folder / f'{name}.py', '--work-dir', folder / name, cwd=folder)
    assert_trained_alike(folder / name, expected)


def plain_config(folder, name):
    cfg = config(folder, name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=1, persistent_workers=False)
    return cfg


def test_plain_runner_says_what_to_use(folder):
    with pytest.raises(ValueError, match=r'FlatCosineLR has no warmup_iters.*DEIMRunner.*derives'):
        Runner.from_cfg(plain_config(folder, 'plain')).train()


def test_plain_runner_with_numbers_of_its_own_trains(folder, expected):
    """The recipe's numbers, given in the config."""
    published = PublishedRecipe(batch_size=128, **load_config(str(DEMO)).recipe)
    recipe = derive_recipe(published, 4, 2, 5, scale_by_batch=False)
    cfg = plain_config(folder, 'numbers')
    cfg.param_scheduler = [
        dict(
            type='FlatCosineLR',
            warmup_iters=recipe.warmup_iters,
            cosine_begin=recipe.cosine_begin,
            cosine_end=recipe.cosine_end,
            lr_gamma=recipe.lr_gamma,
        )
    ]
    numbers = {
        'DenseO2OScheduleHook': dict(stages=recipe.stages),
        'ExpWarmupEMAHook': dict(decay=recipe.ema_decay, warmup_iters=recipe.ema_warmup_iters),
        'EMARestartHook': dict(
            restart_decay=recipe.ema_restart_decay, decay_step=recipe.ema_restart_step
        ),
    }
    for hook in cfg.custom_hooks:
        hook.update(numbers.get(hook.type, {}))
    # mmengine scales the rate for the batch size itself, by another rule.
    cfg.auto_scale_lr = None
    Runner.from_cfg(cfg).train()
    # DEIMRunner lets oneDNN compute more of the model on a CPU, which rounds otherwise.
    found = weights(folder / 'numbers')
    assert found.keys() == expected.keys()
    head = 'bbox_head.decoder.score_heads.2.bias'
    torch.testing.assert_close(found[head], expected[head], rtol=0.01, atol=0.0)


@pytest.mark.parametrize('compiled', [True, dict(mode='default')])
def test_compiled_training_is_refused_with_the_reason(folder, compiled):
    cfg = config(folder, 'compiled')
    cfg.compile = compiled
    with pytest.raises(ValueError, match=r'compile=.*number of denoising queries.*Leave it out'):
        RUNNERS.build(cfg).train()


def test_template_without_workers(folder):
    """num_workers = 0 at the top of the config for own data, data_root without a slash."""
    text = (ROOT / 'configs' / 'deim_dfine_custom.py').read_text()
    edits = {
        './deim_dfine_s.py': f'{ROOT}/configs/deim_dfine_n.py',
        "classes = ('cat', 'dog')": "classes = ('digit_0', 'digit_2', 'digit_3', 'digit_4')",
        "data_root = 'data/custom/'": f"data_root = '{folder}/data'",
        'annotations/train.json': 'train.json',
        'annotations/val.json': 'val.json',
        'images/train/': 'train/',
        'images/val/': 'val/',
        'num_workers = 4': 'num_workers = 0',
        'max_epochs = 60': 'max_epochs = 4',
        'image_size = 640': 'image_size = 64',
        'batch_size = 8': 'batch_size = 5',
        'model = dict(bbox': 'model = dict(backbone=dict(init_cfg=None), bbox',
    }
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / 'own.py'
    path.write_text(text)
    run(ROOT / 'tools/train.py', path, '--work-dir', folder / 'own', cwd=folder)
    last = json.loads(
        max((folder / 'own').glob('*/vis_data/scalars.json')).read_text().split('\n')[-2]
    )
    assert last['coco/bbox_mAP'] >= 0
