"""`configs/plugins`: MAL and Dense O2O in detectors of MMDetection's, trained at a small size."""

import json
import re
import sys
from pathlib import Path

from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.recipe import PublishedRecipe, derive_stages
from deim_mmdet.models.losses import MatchabilityAwareLoss

import mmdet
import mmdet_tools
import numpy as np
import pytest
import torch
from mmdet.models.losses import QualityFocalLoss
from mmdet.registry import HOOKS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import InstanceData

# The painted data set of the training tests.
sys.path.append(str(Path(__file__).parent / 'engine'))
import toy

pytestmark = pytest.mark.slow

FOLDER = toy.ROOT / 'configs' / 'plugins'
PLUGINS = sorted(path.stem for path in FOLDER.glob('*.py'))
DETRS = [name for name in PLUGINS if name.startswith('deim_')]
DENSE = [name for name in PLUGINS if not name.startswith('mal_')]
MAL = [name for name in PLUGINS if not name.startswith('dense_o2o_')]
OBJECTS, IMAGES, BATCH, EPOCHS = 3, 10, 2, 2


def plugin(name) -> Config:
    return load_config(str(FOLDER / f'{name}.py'))


def mmdet_config(name) -> Config:
    """The config of mmdet's that a plug-in inherits."""
    (path,) = re.findall("'mmdet::(.+?)'", (FOLDER / f'{name}.py').read_text().splitlines()[1])
    return Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / path)


def shrink(node, key=None):
    """A part of a config with images of a tenth of the size, and BatchNorm that runs on a CPU."""
    if isinstance(node, dict):
        return type(node)({k: shrink(value, k) for k, value in node.items()})
    if isinstance(node, (list, tuple)):
        return type(node)(shrink(value, key) for value in node)
    if key in ('scale', 'scales', 'img_scale', 'crop_size', 'size') and node > 10:
        return node // 10
    if key == 'feedforward_channels':
        return 64
    return 'BN' if node == 'SyncBN' else node


def small_model(cfg) -> ConfigDict:
    """The model with a small backbone, few layers and queries, and two classes."""
    model = shrink(cfg.model)
    model.backbone.init_cfg = None
    model.bbox_head.num_classes = 2
    if model.backbone.type == 'ResNet':
        model.backbone.update(depth=18, base_channels=16)
        model.neck.in_channels = [16 * 2**stage for stage in model.backbone.out_indices]
    if 'num_queries' in model:
        model.num_queries = 30
        model.encoder.num_layers, model.decoder.num_layers = 1, 2
    return model


def small_config(cfg, data: Path, work_dir: Path) -> Config:
    """The config at a small size, over the data set of a folder; stages keep their order."""
    cfg.model = small_model(cfg)
    cfg.train_dataloader = shrink(cfg.train_dataloader)
    dataset = cfg.train_dataloader.dataset
    base = dataset.dataset if dataset.type == 'MultiImageMixDataset' else dataset
    base.update(
        data_root=f'{data}/',
        ann_file='all.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('disc', 'ring')),
    )
    base.filter_cfg.pop('min_size', None)
    if dataset is not base:
        dataset.pipeline[0].mosaic[0].tile_size = toy.SIDE // 2
    cfg.train_dataloader.update(
        batch_size=BATCH, num_workers=0, persistent_workers=False, pin_memory=False
    )
    cfg.train_cfg.update(max_epochs=EPOCHS, val_interval=EPOCHS + 1)
    for kind in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{kind}_{part}'] = None
    for hook in cfg.get('custom_hooks', []):
        if hook.type == 'DenseO2OScheduleHook':
            hook.stages = (1, 2, 2)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = EPOCHS + 1
    cfg.work_dir = str(work_dir)
    cfg.log_level = 'WARNING'
    cfg.randomness = dict(seed=0)
    for variable in ('train_pipeline', 'train_pipeline_stage2', 'test_pipeline', 'dense_o2o'):
        cfg.pop(variable, None)
    return cfg


@HOOKS.register_module()
class Recorder(Hook):
    """Keeps losses, and the number of objects of each image, of every iteration by epoch."""

    def __init__(self):
        self.losses, self.counts = [], [[] for _ in range(EPOCHS)]

    def before_train(self, runner):
        def keep(module, args, kwargs, output):
            self.losses.append({name: value for name, value in output.items() if 'loss' in name})
            samples = kwargs['data_samples']
            self.counts[runner.epoch] += [len(sample.gt_instances) for sample in samples]

        runner.model.register_forward_hook(keep, with_kwargs=True)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('images')
    toy.write_data_set(folder, images=IMAGES, objects=OBJECTS)
    return folder


def scalars(value) -> list[float]:
    parts = value if isinstance(value, (list, tuple)) else [value]
    return [float(part.detach().sum()) for part in parts]


@pytest.mark.parametrize('name', PLUGINS)
def test_ten_iterations_with_the_plain_runner(name, data, tmp_path):
    cfg = small_config(plugin(name), data, tmp_path)
    assert 'runner_type' not in cfg
    runner = Runner.from_cfg(cfg)
    recorder = Recorder()
    runner.register_hook(recorder)
    loss, values = runner.model.bbox_head.loss_cls, []
    loss.register_forward_hook(lambda module, args, output: values.append(float(output.detach())))
    runner.train()

    assert len(recorder.losses) == 10
    terms = [value for line in recorder.losses for term in line.values() for value in scalars(term)]
    assert np.isfinite(terms).all()
    if name in MAL:
        assert type(loss) is MatchabilityAwareLoss
        # What the module gave is what the losses hold: nothing else computes a classification term.
        classified = sorted(
            value
            for line in recorder.losses
            for term, value in line.items()
            if 'loss_cls' in term
            for value in scalars(value)
        )
        assert sorted(values) == pytest.approx(classified)
        assert min(values) > 0
    else:
        assert type(loss) is QualityFocalLoss

    plain, dense = map(np.array, recorder.counts)
    assert len(plain) == len(dense) == IMAGES
    if name in DENSE:
        assert plain.max() <= OBJECTS
        assert dense.max() > 2 * OBJECTS
        assert dense.mean() > 1.5 * plain.mean()
    elif 'gfl' in name:
        assert set(plain) == set(dense) == {OBJECTS}


def slow_mal(pred, labels, quality, weight, gamma) -> float:
    """Equation 4 of the paper, one probability at a time."""
    total = 0.0
    for i, scores in enumerate(1 / (1 + np.exp(-pred))):
        for label, p in enumerate(scores):
            if label == labels[i]:
                target = quality[i] ** gamma
                term = -target * np.log(p) - (1 - target) * np.log(1 - p)
            else:
                term = -(p**gamma) * np.log(1 - p)
            total += weight[i] * term
    return total


def batch(size=96):
    samples = []
    for shift in (0.0, 16.0):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(size, size), batch_input_shape=(size, size), pad_shape=(size, size)
            )
        )
        boxes = torch.tensor([[5.0, 8.0, 40.0, 50.0], [30.0, 20.0, 60.0, 44.0]]) + shift
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 0]))
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)), samples


@pytest.mark.parametrize('name', MAL)
def test_mal_is_the_only_change_to_the_losses(name):
    """Same weights, same batch: terms of boxes as in mmdet's config, those of classes MAL's."""
    networks = [MODELS.build(small_model(cfg)) for cfg in (mmdet_config(name), plugin(name))]
    networks[0].init_weights()
    networks[1].load_state_dict(networks[0].state_dict())
    calls = []
    networks[1].bbox_head.loss_cls.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    losses = []
    for network in networks:
        torch.manual_seed(0)  # dropout and denoising queries
        losses.append(network.train().loss(*batch()))
    theirs, ours = losses
    assert theirs.keys() == ours.keys()
    for term in ours:
        same = np.allclose(scalars(theirs[term]), scalars(ours[term]), rtol=1e-5)
        # GFL weighs its boxes by scores, which the loss doesn't change.
        assert same == ('cls' not in term), term

    matched = 0
    for (pred, (labels, quality), *rest), kwargs, output in calls:
        weight = rest[0] if rest else kwargs['weight']
        matched += int((labels < 2).sum())
        assert 0 <= quality.min() <= quality.max() <= 1
        arrays = (t.detach().double().numpy() for t in (pred, labels, quality, weight))
        expected = slow_mal(*arrays, gamma=1.5) / float(kwargs['avg_factor'])
        assert float(output.detach()) == pytest.approx(expected, rel=1e-4)
    assert matched > 0


def unscoped(node):
    """A part of a config without the marks of the package that it was inherited from."""
    if isinstance(node, dict):
        return {key: unscoped(value) for key, value in node.items() if key != '_scope_'}
    return [unscoped(value) for value in node] if isinstance(node, (list, tuple)) else node


@pytest.mark.parametrize('name', DENSE)
def test_the_detectors_own_augmentation_follows(name):
    """Loading and, of RTMDet, mosaic and mixup are replaced; all else is the detector's."""
    theirs, ours = mmdet_config(name), plugin(name)
    pipeline = theirs.get('train_pipeline_stage2') or theirs.train_pipeline
    kept = unscoped(ours.train_dataloader.dataset.pipeline[1:])
    if theirs.model.type == 'RTMDet':
        (crop,) = [transform for transform in kept if transform['type'] == 'RandomCrop']
        assert crop.pop('allow_negative_crop')
    assert kept == unscoped(pipeline[2:])
    inner, outer = ours.train_dataloader.dataset.dataset, theirs.train_dataloader.dataset
    assert dict(unscoped(inner), pipeline=None) == dict(unscoped(outer), pipeline=None)
    for part in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'val_dataloader'):
        assert unscoped(ours[part]) == unscoped(theirs[part]), part


@pytest.mark.parametrize('name', DETRS)
def test_the_dense_stage_has_the_published_share(name):
    cfg = plugin(name)
    published = PublishedRecipe(epochs=58, batch_size=32, stages=(4, 29, 50), warmup_iters=2000)
    (hook,) = cfg.custom_hooks
    assert hook.stages[:2] == derive_stages(published, cfg.train_cfg.max_epochs)[:2]
    assert hook.stages[2] == cfg.train_cfg.max_epochs


def test_dense_rtmdet_ends_its_mosaics_where_rtmdet_does():
    switch = mmdet_config('dense_o2o_rtmdet_tiny_8xb32_300e_coco').custom_hooks[1]
    (_, schedule) = plugin('dense_o2o_rtmdet_tiny_8xb32_300e_coco').custom_hooks
    assert schedule.stages[:2] == (0, switch.switch_epoch)


def test_mmdets_own_script_trains_a_plugin(data, tmp_path):
    """Nothing of this package's but `custom_imports` is needed, in a process of its own."""
    cfg = small_config(plugin('deim_dino_4scale_r50_8xb2_12e_coco'), data, tmp_path)
    path = tmp_path / 'dino.py'
    cfg.dump(path)
    toy.run_tool(
        mmdet_tools.TOOLS / 'train.py',
        *(path, '--work-dir', tmp_path / 'work'),
        launcher=mmdet_tools.LAUNCHER,
    )
    (file,) = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 10
    assert {'loss_cls', 'd0.loss_cls', 'enc_loss_cls', 'dn_loss_cls'} < lines[-1].keys()


@pytest.mark.parametrize('loss', ['MatchabilityAwareLoss', 'VarifocalQualityLoss'])
def test_softmax_scores_are_refused(loss):
    assert MODELS.build(dict(type=loss, use_sigmoid=True)).use_sigmoid
    with pytest.raises(ValueError, match=f'{loss} needs scores by sigmoid'):
        MODELS.build(dict(type=loss, use_sigmoid=False))


def test_a_head_without_quality_is_named():
    loss = MODELS.build(dict(type='MatchabilityAwareLoss'))
    with pytest.raises(TypeError, match='MatchabilityAwareLoss needs targets'):
        loss(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
