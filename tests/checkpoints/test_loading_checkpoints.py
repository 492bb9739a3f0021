"""Unconverted checkpoints where configs and commands name a checkpoint."""

import json
from pathlib import Path

from deim_mmdet.checkpoints import convert_reference_state_dict
from deim_mmdet.checkpoints.classes import CLASS_LAYERS
from deim_mmdet.checkpoints.loading import SCHEME
from deim_mmdet.engine import DEIMRunner
from deim_mmdet.engine.config import load_config

import cv2
import golden
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import HOOKS
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import backends
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.runner import CheckpointLoader, load_checkpoint
from reference_checkpoints import reference_state_dict
from test_safe_globals import RunsCode

CLASSES = ('dog', 'ring', 'person')
# Of our classes, those of COCO and of Objects365, and their rows there.
SHARED = {80: {0: 16, 2: 0}, 366: {0: 93, 1: 34, 2: 1}}
SAID = {
    80: 'the rows of 2 classes with the same name: dog, person',
    366: 'the rows of 3 classes with the same name: dog (Dog), ring (Ring), person (Person)',
}


class ReadyToTrain(Exception):
    """Training would start now."""


@HOOKS.register_module()
class StopBeforeTrainingHook(Hook):
    priority = 'LOWEST'

    def before_train_epoch(self, runner):
        raise ReadyToTrain


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A data set of three classes, a config for it, and reference checkpoints of 3, 80 and 366."""
    folder = tmp_path_factory.mktemp('loading')
    images, annotations = [], []
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'), pixels)
        images.append(dict(id=i, file_name=f'{i}.png', width=64, height=64))
        annotations.append(
            dict(id=i + 1, image_id=i, category_id=1, bbox=[8, 8, 24, 24], area=576, iscrowd=0)
        )
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'all.json').write_text(json.dumps(content))
    for count in (3, 80, 366):
        averaged = reference_state_dict('deim_dfine_n', count)
        raw = {name: value + 1 for name, value in averaged.items()}
        content = dict(model=raw, ema=dict(module=averaged), last_epoch=7)
        torch.save(content, folder / f'{count}_classes.pth')
    text = (golden.CONFIGS / 'deim_dfine_custom.py').read_text()
    for old, new in {
        "'./deim_dfine_s.py'": f"'{golden.CONFIGS}/deim_dfine_n.py'",
        "('cat', 'dog')": str(CLASSES),
        'data/custom/': f'{folder}/',
        'annotations/train.json': 'all.json',
        'annotations/val.json': 'all.json',
        'images/train/': '',
        'images/val/': '',
        'image_size = 640': 'image_size = 64',
        'batch_size = 8': 'batch_size = 2',
        'num_workers = 4': 'num_workers = 0',
        'max_epochs = 60': 'max_epochs = 4',
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / 'mine.py').write_text(text)
    return folder


@pytest.fixture
def make_runner(folder, tmp_path, request):
    def make(**options):
        options = {
            'work_dir': str(tmp_path),
            'launcher': 'none',
            'experiment_name': f'{request.node.name}_{len(made)}',
            'model.backbone.init_cfg': None,
            'train_dataloader.persistent_workers': False,
            'val_dataloader.persistent_workers': False,
            'test_dataloader.persistent_workers': False,
            **options,
        }
        cfg = load_config(str(folder / 'mine.py'), options)
        made.append(DEIMRunner.from_cfg(cfg))
        return made[-1]

    made = []
    return make


def log_of(runner):
    return '\n'.join(path.read_text() for path in Path(runner._log_dir).glob('*.log'))


def converted(count):
    return convert_reference_state_dict(reference_state_dict('deim_dfine_n', count))


@pytest.mark.parametrize('place', ['path', 'address'])
def test_testing_takes_an_unconverted_checkpoint(
    make_runner, folder, file_server, hub_folder, place
):
    address, served, _ = file_server
    (served / '3_classes.pth').symlink_to(folder / '3_classes.pth')
    runner = make_runner(load_from=f'{folder if place == "path" else address}/3_classes.pth')
    metrics = runner.test()
    assert 'coco/bbox_mAP' in metrics
    expected = converted(3)
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert '3_classes.pth: converted 667 parameters while loading' in log_of(runner)
    assert 'reference weights from ema.module' in log_of(runner)


@pytest.mark.parametrize('count', SHARED)
def test_training_keeps_all_but_the_class_layers(make_runner, folder, count):
    hooks = [
        dict(type='ExpWarmupEMAHook'),
        dict(type='CheckpointCheckHook'),
        dict(type='StopBeforeTrainingHook'),
    ]
    runner = make_runner(load_from=str(folder / f'{count}_classes.pth'), custom_hooks=hooks)
    with pytest.raises(ReadyToTrain):
        runner.train()
    source = converted(count)
    (ema,) = (hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
    for model in (runner.model, ema.module):
        for name, value in model.state_dict().items():
            if not CLASS_LAYERS.fullmatch(name):
                assert torch.equal(value, source[name]), name
                continue
            for ours in range(3):
                if ours in SHARED[count]:
                    expected = source[name][SHARED[count][ours]]
                    assert torch.equal(value[ours], expected), name
                else:
                    assert not any(torch.equal(value[ours], row) for row in source[name]), name
    log = log_of(runner)
    # Objects365's first score is of no class.
    assert f'the checkpoint has {min(count, 365)} classes, the model 3' in log
    assert SAID[count] in log
    assert ('366 scores are those of Objects365' in log) == (count == 366)


def test_weights_of_rtdetrv4_are_those_of_deim(folder, tmp_path, caplog):
    reference = torch.load(folder / '80_classes.pth')['ema']['module']
    shapes = dict(weight=(768, 128), bias=(768,))
    projector = {
        f'encoder.feature_projector.0.{leaf}': torch.ones(shape) for leaf, shape in shapes.items()
    }
    torch.save(dict(ema=dict(module=reference | projector)), tmp_path / 'RTv4.pth')
    logger = MMLogger.get_instance('rtdetrv4')
    logger.addHandler(caplog.handler)
    loaded = CheckpointLoader.load_checkpoint(f'{SCHEME}{tmp_path}/RTv4.pth')
    expected = converted(80)
    assert loaded['state_dict'].keys() == expected.keys()
    assert 'of RT-DETRv4; left out, as only its training uses them: ' + ', '.join(projector) in (
        caplog.text
    )


def test_published_weights_of_another_activation_are_pointed_out(make_runner, folder, tmp_path):
    """D-FINE's in a config of DEIM's: they fit, and the scores would be wrong."""
    path = tmp_path / 'dfine_n_coco.pth'
    path.symlink_to(folder / '3_classes.pth')
    runner = make_runner(load_from=str(path), custom_hooks=[])
    runner.load_or_resume()
    said = 'dfine_n_coco.pth is published as dfine_n with ReLU, but the decoder of this config has'
    assert f'{said} SiLU' in log_of(runner)


def test_testing_refuses_other_classes(make_runner, folder):
    runner = make_runner(load_from=str(folder / '80_classes.pth'))
    with pytest.raises(ValueError, match=r'trained for 80 classes, but .*num_classes=3'):
        runner.test()


def test_resuming_from_weights_alone_is_refused(make_runner, folder):
    runner = make_runner(load_from=str(folder / '3_classes.pth'), resume=True)
    with pytest.raises(ValueError, match=r'weights alone.*load_from, without resume'):
        runner.train()


def test_another_model_of_the_reference_is_refused(make_runner, tmp_path):
    path = tmp_path / 'dfine_s.pth'
    torch.save(dict(model=reference_state_dict('deim_dfine_s', 3)), path)
    runner = make_runner(load_from=str(path))
    with pytest.raises(ValueError, match=r'have other shapes than the model'):
        runner.test()


def test_unknown_names_are_refused_with_the_file(tmp_path):
    path = tmp_path / 'odd.pth'
    odd = {'decoder.odd': torch.ones(1), 'backbone.stem.stem1.conv.weight': torch.ones(1)}
    torch.save(dict(model=odd), path)
    with pytest.raises(ValueError, match=r'odd\.pth: 1 of 2 names .*decoder\.odd'):
        CheckpointLoader.load_checkpoint(f'{SCHEME}{path}')


def test_the_scheme_serves_mmengine_wherever_it_loads(folder):
    model = golden.build_model('deim_dfine_n')
    loaded = load_checkpoint(model, f'{SCHEME}{folder}/80_classes.pth', strict=True)
    assert loaded['meta']['dataset_meta']['classes'][16] == 'dog'
    expected = converted(80)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.fixture(params=['path', 'address in Ceph'])
def save(request, tmp_path, monkeypatch):
    """Function: saves an object, and tells where mmengine loads it from without our scheme."""
    path = tmp_path / 'saved.pth'

    class Ceph(LocalBackend):
        def get(self, filepath):
            assert filepath == 's3://bucket/saved.pth'
            return path.read_bytes()

    monkeypatch.setitem(backends, 'petrel', Ceph)

    def save(content):
        torch.save(content, path)
        return str(path) if request.param == 'path' else 's3://bucket/saved.pth'

    return save


def test_mmengine_loads_log_histories_without_our_scheme(save):
    loaded = CheckpointLoader.load_checkpoint(save(dict(loss=HistoryBuffer([3.0], [1]))))
    assert loaded['loss'].mean() == 3.0


def test_mmengine_runs_no_code_without_our_scheme(save, tmp_path):
    """The fork's loader would unpickle what torch refuses without a check."""
    trap = tmp_path / 'created'
    address = save(dict(state_dict={}, extra=RunsCode(trap)))
    with pytest.raises(RuntimeError, match=r'saved\.pth .*mkdir.* refused'):
        CheckpointLoader.load_checkpoint(address)
    assert not trap.exists()


def test_checkpoints_of_this_package_and_of_other_schemes_pass_unchanged(tmp_path):
    content = dict(state_dict={'w': torch.ones(1)}, meta=dict(epoch=3))
    torch.save(content, tmp_path / 'own.pth')
    assert CheckpointLoader.load_checkpoint(f'{SCHEME}{tmp_path}/own.pth') == content
    CheckpointLoader.register_scheme('test-only://', lambda name, map_location: dict(name=name))
    loaded = CheckpointLoader.load_checkpoint(f'{SCHEME}test-only://x')
    assert loaded == dict(name='test-only://x')


def test_resuming_runs_nothing_that_a_checkpoint_holds(make_runner, folder, tmp_path):
    """mmengine runs a text in it as Python to find a number of GPUs."""
    ran = tmp_path / 'ran'
    meta = dict(epoch=1, iter=1, config=f"open({str(ran)!r}, 'w').close()")
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    path = tmp_path / 'malicious.pth'
    torch.save(dict(state_dict=converted(3), meta=meta, message_hub=hub), path)
    hooks = [dict(type='CheckpointCheckHook'), dict(type='StopBeforeTrainingHook')]
    runner = make_runner(load_from=str(path), resume=True, custom_hooks=hooks)
    with pytest.raises(ReadyToTrain):
        runner.train()
    assert not ran.exists()


def test_inferencer_refuses_a_checkpoint_of_another_number_of_classes(tmp_path, repo_root):
    """mmengine's loader would go on without its class layers."""
    path = tmp_path / '3.pth'
    torch.save(dict(state_dict=converted(3), meta=dict(dataset_meta=dict(classes='abc'))), path)
    config = str(repo_root / 'configs' / 'deim_dfine_n.py')
    with pytest.raises(ValueError, match=r'trained for 3 classes, but .*num_classes=80'):
        DetInferencer(config, str(path), device='cpu')
