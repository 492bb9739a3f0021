from pathlib import Path

from deim_mmdet.engine import DEIMRunner
from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.recipe import PublishedRecipe, derive_recipe
from deim_mmdet.engine.schedulers.flat_cosine_lr import flat_cosine_factor

import cv2
import mmdet
import numpy as np
import pytest
from typed_configs import SPELLINGS, spelled

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MMDET = Path(mmdet.__file__).parent / '.mim' / 'configs'


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis/training_scheme.py')


def rates(scheme) -> dict[str, np.ndarray]:
    return {group.label.split(' (')[0]: group.rates for group in scheme.groups}


def test_a_recipe_of_ours(tool):
    config = load_config(str(ROOT / 'configs/deim_dfine_n.py'), {'train_cfg.max_epochs': 16})
    augments = config.model.data_preprocessor.batch_augments
    augments.append(dict(type='DenseO2OCopyBlend'))
    scheme = tool.training_scheme(config, images=1290, processes=2)
    batch = 2 * config.train_dataloader.batch_size
    published = PublishedRecipe(batch_size=config.auto_scale_lr.base_batch_size, **config.recipe)
    recipe = derive_recipe(published, 16, batch, 1290 // batch)
    assert scheme.iters_per_epoch == recipe.iters_per_epoch
    assert scheme.boundaries == recipe.stages
    found = rates(scheme)
    assert list(found) == ['bbox_head, neck', 'backbone']
    base = config.optim_wrapper.optimizer.lr * recipe.lr_scale
    factors = [
        flat_cosine_factor(
            i, recipe.warmup_iters, recipe.cosine_begin, recipe.cosine_end, recipe.lr_gamma
        )
        for i in range(16 * recipe.iters_per_epoch)
    ]
    np.testing.assert_allclose(found['bbox_head, neck'], base * np.array(factors), rtol=1e-9)
    assert found['backbone'].max() < base

    t1, t2, t3 = recipe.stages
    spans = scheme.augmentations
    assert spans['DenseO2OMosaic'] == spans['DenseO2OMixUp'] == [(t1, t2)]
    assert spans['DenseO2OPhotometricDistort'] == spans['DenseO2OIoUCrop'] == [(t1, t3)]
    assert spans['ContiguousRandomFlip'] == spans['Resize'] == [(0, 16)]
    assert spans['DenseO2OCopyBlend'] == [(t1, t3)]
    augments[-1].update(stages=('dense',))
    spans = tool.training_scheme(config, images=1290, processes=2).augmentations
    assert spans['DenseO2OCopyBlend'] == [(t1, t2)]
    epoch, decay = scheme.ema.T
    updates = np.rint(epoch * recipe.iters_per_epoch) + 1
    expected = recipe.ema_decay * (1 - np.exp(-updates / recipe.ema_warmup_iters))
    np.testing.assert_allclose(decay, expected, atol=1e-6)


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_types_may_be_classes_and_paths(tool, spelling):
    config = load_config(str(ROOT / 'configs/deim_dfine_n.py'), {'train_cfg.max_epochs': 16})
    config.optim_wrapper.type = 'AmpOptimWrapper'
    named = tool.training_scheme(config, images=700)
    other = config.copy()
    for part in ('optim_wrapper', 'custom_hooks', 'default_hooks', 'train_dataloader'):
        other[part] = spelled(config[part], spelling)
    other.model.data_preprocessor = spelled(config.model.data_preprocessor, spelling)
    found = tool.training_scheme(other, images=700)
    assert found.boundaries == named.boundaries
    assert found.augmentations == named.augmentations
    assert {'DenseO2OMosaic', 'DenseO2OMixUp', 'Resize'} < found.augmentations.keys()
    assert rates(found).keys() == rates(named).keys()
    np.testing.assert_array_equal(found.ema, named.ema)


def test_the_runner_may_be_a_class(tool):
    config = load_config(str(ROOT / 'configs/deim_dfine_n.py'), {'train_cfg.max_epochs': 16})
    config.runner_type = DEIMRunner
    assert tool.training_scheme(config, images=700).boundaries is not None


def test_a_plugin_config(tool):
    path = ROOT / 'configs/plugins/deim_dino_4scale_r50_8xb2_12e_coco.py'
    scheme = tool.training_scheme(load_config(str(path)), images=160, processes=8)
    assert (scheme.iters_per_epoch, scheme.epochs, scheme.boundaries) == (10, 12, (1, 6, 12))
    assert scheme.augmentations == {
        'DenseO2OMosaic': [(1, 6)],
        'RandomFlip': [(0, 12)],
        'RandomChoice': [(0, 12)],
        'DenseO2OMixUp': [(1, 6)],
    }
    # The last epoch's rate is a tenth.
    for label, expected in (
        ('bbox_head, decoder, dn_query_generator, …', 1e-4),
        ('backbone', 1e-5),
    ):
        drawn = rates(scheme)[label]
        np.testing.assert_allclose(drawn[:110], expected)
        np.testing.assert_allclose(drawn[110:], expected / 10)
    assert scheme.ema is None


def test_configs_of_mmdets_with_their_own_switches(tool):
    rtmdet = load_config(str(MMDET / 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py'))
    scheme = tool.training_scheme(rtmdet, images=640, processes=4)
    spans = scheme.augmentations
    assert scheme.iters_per_epoch == 5
    assert spans['CachedMosaic'] == spans['CachedMixUp'] == [(0, 280)]
    assert spans['RandomCrop'] == [(0, 300)]
    assert scheme.boundaries is None
    (rate,) = rates(scheme).values()
    assert rate[0] < 1e-6 < 0.1 * rate.max()
    # mmdet's ExpMomentumEMA: a copy first, then with a momentum that falls to its end.
    momentum = rtmdet.custom_hooks[0].momentum
    assert scheme.ema[0, 1] == 0
    updates = np.rint(scheme.ema[1:, 0] * 5)
    warm = 1 - (momentum + (1 - momentum) * np.exp(-(1 + updates) / 2000))
    np.testing.assert_allclose(scheme.ema[1:, 1], warm, atol=1e-6)

    yolox = load_config(str(MMDET / 'yolox/yolox_s_8xb8-300e_coco.py'))
    spans = tool.training_scheme(yolox, images=80).augmentations
    assert spans['Mosaic'] == spans['MixUp'] == [(0, 284)]
    assert spans['RandomFlip'] == [(0, 300)]


def test_the_training_set_gives_the_length(tool, tmp_path):
    from_data = load_config(str(MMDET / 'retinanet/retinanet_r18_fpn_1x_coco.py'))
    from_data.train_dataloader.dataset.data_root = str(tmp_path)
    with pytest.raises(FileNotFoundError, match='--images'):
        tool.training_scheme(from_data)
    from_data.train_dataloader.dataset = dict(type=tool.CountedImages, number=37)
    scheme = tool.training_scheme(from_data)
    assert scheme.iters_per_epoch == -(-37 // from_data.train_dataloader.batch_size)
    assert scheme.epochs == 12


def test_command_draws_the_stages(tool, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'new' / 'scheme.png'
    path = ROOT / 'configs/deim_dfine_n.py'
    arguments = [str(path), '--images', '700', '--out', str(out)]
    arguments += ['--cfg-options', 'train_cfg.max_epochs=8']
    monkeypatch.setattr('sys.argv', ['training_scheme.py', *arguments])
    tool.main()
    text = capsys.readouterr().out
    assert text.startswith('8 epochs of ')
    assert 'DenseO2OMosaic: epochs 1 to ' in text
    assert list(out.parent.iterdir()) == [out]
    image = cv2.imread(str(out))
    for colour in ('#f2e6c9', '#d5e8d4', '#dae8fc', '#eeeeee'):
        bgr = tuple(int(colour[i : i + 2], 16) for i in (5, 3, 1))
        assert (image == bgr).all(axis=2).sum() > 1000


@pytest.mark.parametrize(
    ('content', 'arguments', 'message'),
    [
        ('model = dict()', (), r'own\.py needs model, train_dataloader'),
        (None, ('--images', '5'), 'there is no config'),
        ("_base_ = '{}/deim_dfine_n.py'", ('--images', '0'), '--images'),
        ("_base_ = '{}/deim_dfine_n.py'", ('--processes', '0'), '--processes'),
        (
            "_base_ = '{}/deim_dfine_n.py'\ntrain_cfg = dict(max_epochs=2)",
            ('--images', '500'),
            'max_epochs=2 is too short',
        ),
    ],
)
def test_what_is_wrong_is_named(tool, tmp_path, monkeypatch, content, arguments, message):
    path = tmp_path / 'own.py'
    if content:
        path.write_text(content.format(ROOT / 'configs') + '\n')
    monkeypatch.setattr('sys.argv', ['training_scheme.py', str(path), *arguments])
    with pytest.raises(SystemExit, match=message):
        tool.main()
