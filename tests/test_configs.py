"""The configs against the published recipes, built as a training builds them."""

import ast
import re
from pathlib import Path

from deim_mmdet.checkpoints.loading import SCHEME
from deim_mmdet.checkpoints.reference import convert_name, decoder_kind
from deim_mmdet.engine import PublishedRecipe, derive_recipe
from deim_mmdet.engine.config import load_config
from deim_mmdet.models.losses import MatchabilityAwareLoss, VarifocalQualityLoss

import pytest
from mmdet.registry import HOOKS, MODELS
from mmengine.optim import build_optim_wrapper
from schedules import MODELS as PUBLISHED
from schedules import published_numbers, schedule

CONFIGS = Path(__file__).parents[1] / 'configs'
OWN = sorted(path.name for path in CONFIGS.glob('*.py'))


@pytest.mark.parametrize(
    'path', sorted(CONFIGS.rglob('*.py')), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_no_config_counts_the_parts_of_a_list(path):
    """A base may come to have one more of them: what is meant has a name or a type."""
    subscripts = (
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Subscript)
    )
    counted = [
        ast.unparse(subscript)
        for subscript in subscripts
        for part in ast.walk(subscript.slice)
        if isinstance(part, ast.Constant) and isinstance(part.value, int)
    ]
    assert counted == []


def load(name):
    return load_config(str(CONFIGS / name))


def build_model(cfg):
    cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model)


def published_recipe(cfg):
    return PublishedRecipe(batch_size=cfg.auto_scale_lr.base_batch_size, **cfg.recipe)


@pytest.mark.parametrize('name', OWN)
def test_every_config_builds(name):
    cfg = load(name)
    published = published_recipe(cfg)
    recipe = derive_recipe(published, cfg.train_cfg.max_epochs, 8, 100)
    assert recipe.stages[2] <= recipe.epochs
    for hook in [*cfg.custom_hooks, cfg.default_hooks.checkpoint]:
        assert HOOKS.build(hook) is not None
    assert cfg.runner_type == 'DEIMRunner'
    assert cfg.val_evaluator.ann_file.startswith(cfg.data_root)
    # Loaded by this package, which lets no file run code; mmengine's own downloads may.
    assert cfg.model.backbone.init_cfg is None or (
        cfg.model.backbone.init_cfg.checkpoint.startswith((f'{SCHEME}https://', f'{SCHEME}timm://'))
    )
    head = build_model(cfg).bbox_head
    if cfg.get('classes'):
        assert head.num_classes == len(cfg.classes)


@pytest.mark.parametrize('model', PUBLISHED)
def test_recipe_is_the_published_one(model):
    golden = schedule(model)
    cfg = load(f'{model}.py')
    published = published_recipe(cfg)
    expected = published_numbers(model)
    assert published == PublishedRecipe(**expected)
    assert cfg.train_cfg.max_epochs == golden['epochs']
    assert cfg.auto_scale_lr.enable
    assert cfg.optim_wrapper.clip_grad.max_norm == golden['clip_max_norm']
    optimizer = cfg.optim_wrapper.optimizer
    for key in ('type', 'lr', 'weight_decay'):
        assert optimizer[key] == golden['optimizer'][key]
    assert list(optimizer.betas) == golden['optimizer']['betas']

    collate = golden['collate']
    augments = cfg.model.data_preprocessor.get('batch_augments', [])
    augments = {augment.type: MODELS.build(augment) for augment in augments}
    for name, prob in (('MixUp', 'mixup_prob'), ('CopyBlend', 'copyblend_prob')):
        found = augments.get(f'DenseO2O{name}')
        assert (0 if found is None else found.prob) == (collate.get(prob) or 0)
    if copy_blend := augments.get('DenseO2OCopyBlend'):
        t1, *ends = published.stages
        acts = dict(zip(ends, [('dense',), ('dense', 'flat')], strict=True))
        assert copy_blend.stages == acts[collate['copyblend_epochs'][1]]
        assert collate['copyblend_epochs'][0] == t1
        assert copy_blend.num_objects == collate['num_objects']
        assert copy_blend.min_area == collate['area_threshold']
        assert copy_blend.context == tuple(collate['expand_ratios'])
        # It leaves mixed batches alone, and counts pixels at the size of the input.
        assert [*augments][:2] == ['DenseO2OMixUp', 'DenseO2OCopyBlend']
    # `scales=None` there switches multi-scale training off, whatever the other numbers say.
    multi_scale = collate.get('scales', True) and collate.get('base_size_repeat')
    found = augments.get('DenseO2OMultiScale')
    assert (None if found is None else found.base_size_repeat) == (multi_scale or None)
    criterion = cfg.model.bbox_head.get('criterion', {})
    assert (published.matcher_change_epoch is not None) == bool(criterion.get('late_matcher'))


@pytest.mark.parametrize('model', PUBLISHED)
def test_images_are_augmented_as_published(model):
    golden = schedule(model)
    cfg = load(f'{model}.py')
    load_and_mix, *others = cfg.train_dataloader.dataset.pipeline
    others = {transform.type: transform for transform in others}
    ops = {op['type']: op for op in golden['ops']}
    width, height = others['Resize'].scale
    assert [height, width] == ops['Resize']['size']
    # Twice: at the size of the augmented image and at that of the input.
    sizes = [op['min_size'] for op in golden['ops'] if op['type'] == 'SanitizeBoundingBoxes']
    assert [load_and_mix.min_size, others['DropTinyBoxes'].min_size] == sizes
    if golden['mosaic_prob'] is not None:
        assert load_and_mix.mosaic_prob == golden['mosaic_prob']
        assert load_and_mix.mosaic[0].tile_size == ops['Mosaic']['output_size']
    normalised = ops.get('Normalize', dict(mean=[0] * 3, std=[1] * 3))
    preprocessor = cfg.model.data_preprocessor
    for name in ('mean', 'std'):
        expected = [255 * value for value in normalised[name]]
        assert preprocessor[name] == pytest.approx(expected)


@pytest.mark.parametrize('model', PUBLISHED)
def test_every_parameter_has_its_published_rate_and_decay(model):
    golden = schedule(model)
    cfg = load(f'{model}.py')
    network = build_model(cfg)
    wrapper = build_optim_wrapper(network, cfg.optim_wrapper)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group['params']}
    parameters = dict(network.named_parameters())
    assert len(groups) == len(golden['params'])
    kind = decoder_kind(parameters)
    for name, numbers in golden['params'].items():
        group = groups[id(parameters[convert_name(name, kind)])]
        assert group['lr'] == pytest.approx(numbers['lr'], rel=1e-9), name
        assert group['weight_decay'] == pytest.approx(numbers['weight_decay'], rel=1e-9), name


BASELINES = [name for name in PUBLISHED if name.startswith(('dfine', 'rtdetr'))]


@pytest.mark.parametrize('name', BASELINES)
def test_baselines_have_no_dense_stage_and_the_old_losses(name):
    baseline, deim = load(f'{name}.py'), load(f'deim_{name}.py')
    assert baseline.recipe.stages[:2] == (0, 0)
    assert baseline.model.bbox_head.criterion.terms.loss_cls.loss.type == 'VarifocalQualityLoss'
    assert deim.model.bbox_head.criterion.terms.loss_cls.loss.type == 'MatchabilityAwareLoss'
    for part in ('query_selection', 'decoder'):
        acts = [cfg.model.bbox_head[part].act for cfg in (baseline, deim)]
        assert acts == ['ReLU', 'SiLU']
    frozen = any(key.startswith('backbone.') for key in schedule(name)['frozen'])
    assert baseline.model.backbone.get('frozen_stem', False) == frozen
    assert not deim.model.backbone.get('frozen_stem', False)


def test_rtdetr_has_the_network_of_rtdetrv2():
    """The first version has as many points on every level; only the recipe differs."""
    for size in ('r18', 'r50'):
        first, second = load(f'rtdetr_{size}.py'), load(f'rtdetrv2_{size}.py')
        assert len(set(first.model.bbox_head.decoder.num_points)) == 1
        shapes = [
            {k: v.shape for k, v in build_model(c).state_dict().items()} for c in (first, second)
        ]
        assert shapes[0] == shapes[1]
        assert (first.recipe.epochs, first.recipe.warmup_iters) == (72, 0)


def write_custom(path, **changes):
    """The config for own data over N with other values in its head."""
    text = (CONFIGS / 'deim_dfine_custom.py').read_text()
    text = text.replace("'./deim_dfine_s.py'", f"'{CONFIGS}/deim_dfine_n.py'")
    for name, value in changes.items():
        text, count = re.subn(rf'(?m)^{name} = .*', f'{name} = {value!r}', text)
        assert count == 1
    path.write_text(text)
    return load_config(str(path))


def test_custom_config_derives_everything_from_its_head(tmp_path):
    cfg = write_custom(
        tmp_path / 'mine.py',
        classes=('a', 'b', 'c'),
        data_root='/mine/',
        image_size=416,
        max_epochs=7,
        batch_size=3,
    )
    assert cfg.model.bbox_head.num_classes == 3
    assert cfg.train_cfg.max_epochs == 7
    assert cfg.train_dataloader.batch_size == 3
    for dataset in (
        cfg.train_dataloader.dataset.dataset,
        cfg.val_dataloader.dataset,
        cfg.test_dataloader.dataset,
    ):
        assert dataset.metainfo.classes == ('a', 'b', 'c')
        assert dataset.data_root == '/mine/'
    assert cfg.test_evaluator.ann_file == '/mine/annotations/val.json'
    sizes = [
        transform.scale
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
        for transform in loader.dataset.pipeline
        if transform.type == 'Resize'
    ]
    assert sizes == [(416, 416)] * 3
    mosaic = cfg.train_dataloader.dataset.pipeline[0].mosaic[0]
    assert (mosaic.tile_size, mosaic.scale) == (208, (416, 416))


@pytest.mark.parametrize('mal', [True, False])
@pytest.mark.parametrize('dense_o2o', [True, False])
def test_custom_config_switches_the_parts_of_deim(tmp_path, mal, dense_o2o):
    cfg = write_custom(tmp_path / 'mine.py', mal=mal, dense_o2o=dense_o2o)
    criterion = build_model(cfg).bbox_head.criterion
    assert type(criterion.terms['loss_cls'].loss) is (
        MatchabilityAwareLoss if mal else VarifocalQualityLoss
    )
    published = published_recipe(cfg)
    assert published.dense == dense_o2o
    # All else as it is with both.
    assert published.stages[2] == load('deim_dfine_n.py').recipe.stages[2]
