"""Objects365: its data, its configs, and the recipe that starts from its weights."""

import json
import re
from pathlib import Path

from deim_mmdet.checkpoints.architectures import decoder_activation
from deim_mmdet.checkpoints.published import published_models
from deim_mmdet.checkpoints.reference import convert_name
from deim_mmdet.data_checks.config import check_datasets
from deim_mmdet.datasets import CheckedObjects365V2Dataset
from deim_mmdet.engine import PublishedRecipe, derive_recipe
from deim_mmdet.engine.agreement import check_evaluator
from deim_mmdet.engine.config import load_config

import cv2
import numpy as np
import pytest
from mmdet.datasets import Objects365V2Dataset
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from schedules import schedule

CONFIGS = Path(__file__).parents[1] / 'configs'
CLASSES = Objects365V2Dataset.METAINFO['classes']


def load(name):
    cfg = load_config(str(CONFIGS / name))
    cfg.model.backbone.init_cfg = None
    return cfg


def recipe_of(cfg):
    published = PublishedRecipe(batch_size=cfg.auto_scale_lr.base_batch_size, **cfg.recipe)
    return derive_recipe(published, cfg.train_cfg.max_epochs, 32, published.iters_per_epoch)


@pytest.fixture
def options(tmp_path):
    """Config of a data set with the published file's form: nested folders, ids from 1."""
    names = ['v1/patch0/a.jpg', 'v2/patch16/objects365_v2_00908726.jpg', 'v1/patch7/b.jpg']
    for name in ('patch0/a.jpg', 'patch7/b.jpg'):
        path = tmp_path / 'train' / name
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8))
    content = dict(
        images=[
            dict(id=i, file_name=f'images/{name}', width=30, height=20)
            for i, name in enumerate(names)
        ],
        annotations=[
            dict(id=i, image_id=i, category_id=c, bbox=[2, 2, 8, 9], area=72, iscrowd=0)
            for i, c in enumerate((93, 1, 365))
        ],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
    )
    (tmp_path / 'train.json').write_text(json.dumps(content))
    return dict(data_root=str(tmp_path), ann_file='train.json', data_prefix=dict(img='train/'))


def test_data_set_reads_what_mmdets_reads(options):
    ours = CheckedObjects365V2Dataset(**options)
    theirs = DATASETS.build(dict(options, type='mmdet.Objects365V2Dataset'))
    assert ours.metainfo['classes'] == CLASSES
    assert len(ours) == len(theirs) == 2
    for index in range(2):
        ours_info, theirs_info = ours.get_data_info(index), theirs.get_data_info(index)
        assert ours_info['img_path'] == theirs_info['img_path']
        assert ours_info['instances'] == theirs_info['instances']
    assert [i['bbox_label'] for n in range(2) for i in ours.get_data_info(n)['instances']] == [
        92, 364,
    ]  # fmt: skip


def test_evaluator_may_know_the_image_that_is_left_out(options, tmp_path):
    evaluator = Evaluator(dict(type='CheckedCocoMetric', ann_file=f'{tmp_path}/train.json'))
    check_evaluator(evaluator, CheckedObjects365V2Dataset(**options), 'test')
    shorter = CheckedObjects365V2Dataset(**options, indices=1)
    with pytest.raises(ValueError, match=r"1 of the 2 of the evaluator's not in the data set"):
        check_evaluator(evaluator, shorter, 'test')


def test_data_check_finds_the_images(options):
    dataset = dict(options, type='CheckedObjects365V2Dataset', pipeline=[])
    config = Config(dict(train_dataloader=dict(dataset=dataset)))
    [report] = check_datasets(config, images=True, use_cache=False)
    assert report.images_read
    # Faults of images; most classes have no object in three images.
    assert set(report.problems) == {'unused_category'}


@pytest.mark.parametrize(('size', 'epochs'), [('s', 36), ('m', 36), ('l', 24), ('x', 24)])
def test_pre_training(size, epochs):
    cfg, coco = load(f'objects365/dfine_{size}_obj365.py'), load(f'dfine_{size}.py')
    assert cfg.model == {**coco.model, 'bbox_head': {**coco.model.bbox_head, 'num_classes': 365}}
    recipe = recipe_of(cfg)
    assert (recipe.epochs, recipe.stages, recipe.lr_gamma) == (epochs, (0, 0, epochs), 1.0)
    assert recipe.iters_per_epoch == 1742289 // 32
    assert cfg.optim_wrapper.optimizer.lr == 2.5e-4
    assert cfg.optim_wrapper.paramwise_cfg == coco.optim_wrapper.paramwise_cfg
    sets = [cfg.train_dataloader.dataset.dataset, cfg.val_dataloader.dataset]
    assert [part.type for part in sets] == ['CheckedObjects365V2Dataset'] * 2
    assert cfg.val_evaluator.ann_file.endswith(sets[1].ann_file)


def test_fine_tuning_of_x_has_the_published_recipe():
    """Every parameter has the rate and decay of D-FINE-X, which has the same optimiser."""
    cfg = load('deim_dfine_x_obj2coco.py')
    recipe = recipe_of(cfg)
    assert (recipe.epochs, recipe.stages) == (24, (2, 12, 20))
    assert (recipe.warmup_iters, recipe.ema_warmup_iters, recipe.lr_gamma) == (0, 0, 1.0)
    network = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(network, cfg.optim_wrapper)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group['params']}
    parameters, golden = dict(network.named_parameters()), schedule('dfine_x')['params']
    assert len(groups) == len(golden)
    for name, numbers in golden.items():
        group = groups[id(parameters[convert_name(name)])]
        assert group['lr'] == pytest.approx(numbers['lr'], rel=1e-9), name
        assert group['weight_decay'] == pytest.approx(numbers['weight_decay'], rel=1e-9), name
    rates = sorted({group['lr'] for group in groups.values()})
    assert rates == pytest.approx([2.5e-6, 2.5e-4])
    # The network of D-FINE-X, with DEIM's loss.
    dfine = load('dfine_x.py').model
    assert (cfg.model.backbone, cfg.model.neck) == (dfine.backbone, dfine.neck)
    for part in ('query_selection', 'decoder', 'denoising'):
        assert cfg.model.bbox_head[part] == dfine.bbox_head[part]
    loss = cfg.model.bbox_head.criterion.terms.loss_cls.loss
    assert (loss.type, decoder_activation(cfg)) == ('MatchabilityAwareLoss', 'ReLU')


@pytest.mark.parametrize('dense_o2o', [True, False])
@pytest.mark.parametrize('size', ['s', 'l'])
def test_own_data_starts_from_objects365(tmp_path, size, dense_o2o):
    for name, changes in {
        'deim_dfine_custom': {
            "'./deim_dfine_s.py'": f"'{CONFIGS}/deim_dfine_{size}.py'",
            'dense_o2o = True': f'dense_o2o = {dense_o2o}',
        },
        'deim_dfine_custom_obj365': {"size = 's'": f"size = '{size}'"},
    }.items():
        text = (CONFIGS / f'{name}.py').read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / f'{name}.py').write_text(text)
    cfg = load_config(str(tmp_path / 'deim_dfine_custom_obj365.py'))
    recipe = recipe_of(cfg)
    assert recipe.stages == ((2, 12, 20) if dense_o2o else (0, 0, 20))
    assert (recipe.epochs, recipe.warmup_iters) == (24, 0)
    # The file, and the network of that file but for the classes.
    published = published_models()[f'dfine_{size}_obj365']
    assert cfg.load_from.endswith(f'/{published.file}')
    networks = [MODELS.build(c.model) for c in (cfg, load(published.config))]
    shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in networks]
    differ = {k for k in shapes[1] if shapes[0].get(k) != shapes[1][k]}
    assert shapes[0].keys() == shapes[1].keys()
    assert all(re.search('score|embedding', name) for name in differ)
    assert decoder_activation(cfg) == cfg.model.bbox_head.query_selection.act == 'ReLU'
