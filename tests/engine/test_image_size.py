"""``image_size`` is said once, and what depends on it follows, whichever tool reads the config."""

from deim_mmdet.engine import DEIMRunner, image_size, set_image_size
from deim_mmdet.engine.config import load_config

import numpy as np
import pytest
import toy
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.runner import Runner
from typed_configs import SPELLINGS, spelled

CONFIGS = toy.ROOT / 'configs'
PARTS = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'custom_hooks', 'model')
PIPELINE = 'train_dataloader.dataset.pipeline'
# As the config for own data ended in version 0.1.
ENDING_OF_0_1 = """
model['data_preprocessor'] = dict(
    batch_augments=[
        dict(augment, base_size=image_size) if augment.type == 'DenseO2OMultiScale' else augment
        for augment in _base_.model.data_preprocessor.batch_augments
    ]
)
_base_.train_dataloader.dataset.pipeline[0].mosaic[0].tile_size = image_size // 2
_base_.train_dataloader.dataset.pipeline[0].mosaic[0].scale = (image_size, image_size)
_base_.train_dataloader.dataset.pipeline[2].scale = (image_size, image_size)
_base_.val_dataloader.dataset.pipeline[1].scale = (image_size, image_size)
_base_.test_dataloader.dataset.pipeline[1].scale = (image_size, image_size)
"""


@pytest.fixture
def resolved(monkeypatch):
    """Function: the config that the runner is built from, where mmdet's tools read a file."""
    monkeypatch.setattr(Runner, 'from_cfg', classmethod(lambda cls, cfg: cfg))

    def resolved(path, **options):
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(options)
        return DEIMRunner.from_cfg(cfg)

    return resolved


@pytest.fixture
def logged(monkeypatch):
    """Lines of the log about sizes."""
    lines = []
    monkeypatch.setattr(image_size, 'print_log', lambda line, **_: lines.append(line))
    return lines


@pytest.fixture
def written(tmp_path):
    """Function: path of a config that inherits one of ours."""

    def written(base, text):
        path = tmp_path / 'mine.py'
        path.write_text(f"_base_ = '{CONFIGS}/{base}'\n{text}")
        return path

    return written


@pytest.fixture
def of_0_1(tmp_path):
    text = (CONFIGS / 'deim_dfine_custom.py').read_text()
    calls = 'set_image_size(_base_, image_size)\nif keep_ratio:\n    keep_aspect_ratio(_base_)\n'
    assert text.endswith(calls)
    text = text.removesuffix(calls) + ENDING_OF_0_1
    for old, new in (
        ("_base_ = './deim_dfine_s.py'", f"_base_ = '{CONFIGS}/deim_dfine_s.py'"),
        ('from deim_mmdet.engine import keep_aspect_ratio, set_image_size\n', ''),
        ('image_size = 640', 'image_size = 416'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = tmp_path / 'of_0_1.py'
    path.write_text(text)
    return path


def sizes(cfg):
    """Everything about sizes in the parts of a config that a run builds, by dotted name."""
    found = {}

    def walk(node, name):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key in ('scale', 'tile_size', 'base_size'):
                found[f'{name}.{key}'] = value
            elif isinstance(value, dict | list):
                walk(value, f'{name}.{key}')

    walk({part: cfg[part] for part in PARTS}, '')
    return found


def expected_sizes(cfg, height, width):
    """What a file with hand-written sizes would have in the same places."""
    numbers = dict(
        scale=(width, height), tile_size=min(height, width) // 2, base_size=max(height, width)
    )
    return {name: numbers[name.rpartition('.')[2]] for name in sizes(cfg)}


NAMES = ('deim_dfine_n', 'deim_dfine_l', 'deim_dfine_custom', 'demo/deim_dfine_demo',
         'deim_rtdetrv2_r50', 'dfine_m', 'convergence/study_sparse_deim')  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_every_tool_finds_the_same_sizes(name, resolved):
    path = CONFIGS / f'{name}.py'
    ours = load_config(path, {'image_size': 320})
    theirs = resolved(path, image_size=320)
    # Resize in three loaders and the mosaic at the least.
    assert len(sizes(ours)) >= 4
    assert sizes(ours) == expected_sizes(ours, 320, 320) == sizes(theirs)
    assert ours.to_dict() == theirs.to_dict()


@pytest.mark.parametrize('name', NAMES)
def test_files_are_right_by_themselves(name):
    """For those who read nothing but the file, as mmdet's inferencer."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    side = cfg.image_size
    assert sizes(cfg) == expected_sizes(cfg, side, side)


def test_configs_of_0_1_give_the_same(of_0_1, resolved):
    for size, cfgs in {
        416: (Config.fromfile(of_0_1), load_config(of_0_1), resolved(of_0_1)),
        320: (load_config(of_0_1, {'image_size': 320}), resolved(of_0_1, image_size=320)),
    }.items():
        for cfg in cfgs:
            assert sizes(cfg) == expected_sizes(cfg, size, size)
            assert cfg.model.data_preprocessor.batch_augments[1].base_size == size


def test_a_variable_in_a_file_is_enough(written, resolved):
    path = written('deim_dfine_n.py', 'image_size = 320\n')
    for cfg in (load_config(path), resolved(path)):
        assert sizes(cfg) == expected_sizes(cfg, 320, 320)


def test_sizes_written_by_hand_stay_until_somebody_asks_for_another(written, resolved, logged):
    """``image_size`` of the base says nothing about them."""
    path = written(
        'deim_dfine_n.py',
        """
for loader in (_base_.train_dataloader, _base_.val_dataloader):
    for transform in loader.dataset.pipeline:
        if transform.type == 'Resize':
            transform.scale = (512, 384)
del loader, transform
""",
    )
    untouched = sizes(Config.fromfile(path))
    assert untouched[f'.{PIPELINE}.2.scale'] == (512, 384)
    assert sizes(load_config(path)) == sizes(resolved(path)) == untouched
    for line in logged:
        assert 'image_size=640 of a base config is not in force' in line
        assert '(384, 512)' in line
    assert len(logged) == 2
    # Mosaics of 640 are resized to 384 x 512: no saying which of them is meant.
    for read in (
        lambda: load_config(path, {'image_size': 320}),
        lambda: resolved(path, image_size=320),
    ):
        with pytest.raises(ValueError, match=rf'384 x 512 in {PIPELINE}\.2\b') as error:
            read()
        assert f'{PIPELINE}.0.mosaic.0' in str(error.value)


def test_loaders_may_have_different_sizes_before(written, resolved):
    path = written(
        'deim_dfine_n.py',
        'test_pipeline = _base_.test_pipeline\n'
        'test_pipeline[1].scale = (800, 800)\n'
        'val_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n',
    )
    assert sizes(resolved(path)) == sizes(Config.fromfile(path))
    cfg = resolved(path, image_size=320)
    assert sizes(cfg) == expected_sizes(cfg, 320, 320)


def test_a_change_is_logged_and_the_callers_config_stays(logged, resolved):
    cfg = Config.fromfile(CONFIGS / 'deim_dfine_n.py')
    cfg.image_size = 320
    before = cfg.to_dict()
    once = DEIMRunner.from_cfg(cfg)
    assert DEIMRunner.from_cfg(once).to_dict() == once.to_dict()
    (line,) = logged
    assert line.startswith('image_size=320: ')
    assert cfg.to_dict() == before


@pytest.mark.parametrize('size', [[320, 480], (320, 480)])
def test_height_and_width(size, resolved, of_0_1):
    for path in (CONFIGS / 'deim_dfine_custom.py', of_0_1):
        ours, theirs = load_config(path, {'image_size': size}), resolved(path, image_size=size)
        assert sizes(ours) == expected_sizes(ours, 320, 480) == sizes(theirs)


@pytest.mark.parametrize(
    'size', [100, 0, -32, 'large', 320.0, True, None, (320,), (320, 330), (320, 'a'), 'ab']
)
def test_what_is_no_size_is_refused(size, resolved):
    words = r'image_size=.* must be a positive multiple of 32, or two of them'
    for name in ('deim_dfine_n.py', 'deim_dfine_custom.py'):
        with pytest.raises(ValueError, match=words):
            load_config(CONFIGS / name, {'image_size': size})
        with pytest.raises(ValueError, match=words):
            resolved(CONFIGS / name, image_size=size)


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_types_count_and_not_numbers(spelling):
    """Other options of the same number, and other transforms, have nothing to do with the size."""
    others = [
        dict(type='RandomResize', scale=(640, 640), ratio_range=(0.5, 2.0)),
        dict(type='Resize', scale=(640, 640), keep_ratio=True),
        dict(type='Resize', scale_factor=2.0),
        dict(type='RandomCrop', crop_size=(640, 640)),
    ]
    cfg = dict(
        train_dataloader=dict(
            batch_size=640,
            dataset=dict(
                type='RepeatDataset',
                times=640,
                dataset=dict(
                    type='CocoDataset',
                    pipeline=[
                        *others,
                        dict(type='DenseO2OMosaic', tile_size=256),
                        dict(type='DenseO2OMosaic', scale=[640, 640]),
                        dict(type='RandomApply', transforms=[dict(type='Resize', scale=640)]),
                    ],
                ),
            ),
        ),
        tta_pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='TestTimeAug',
                transforms=[[dict(type='Resize', scale=(side, side)) for side in (512, 640, 768)]],
            ),
        ],
        model=dict(batch_augments=[dict(type='DenseO2OMultiScale', base_size=640)]),
    )
    cfg = Config(spelled(cfg, spelling))
    assert set_image_size(cfg, 320) == 7
    pipeline = cfg.train_dataloader.dataset.dataset.pipeline
    assert pipeline[:4] == Config(dict(others=spelled(others, spelling))).others
    keys = ('tile_size', 'scale')
    # Their own share of the size, or the default's half.
    assert [[t.get(key) for key in keys] for t in pipeline[4:6]] == [[128, None], [160, (320, 320)]]
    assert pipeline[6].transforms[0].scale == (320, 320)
    assert (cfg.train_dataloader.batch_size, cfg.train_dataloader.dataset.times) == (640, 640)
    (alternatives,) = cfg.tta_pipeline[1].transforms
    assert [t.scale for t in alternatives] == [(256, 256), (320, 320), (384, 384)]
    assert cfg.model.batch_augments[0].base_size == 320
    assert set_image_size(cfg, 320) == 0


def test_configs_that_say_nothing_about_it_are_left_alone(resolved):
    """MMDetection's have ``image_size``, too, for other things."""
    cfg = Config(dict(
        image_size=(100, 77),
        test_dataloader=dict(dataset=dict(pipeline=[dict(type='Resize', scale=(640, 640))])),
    ))  # fmt: skip
    assert DEIMRunner.from_cfg(cfg).to_dict() == cfg.to_dict()


@pytest.mark.parametrize('size', [64, (64, 96)])
@pytest.mark.parametrize('name', ['deim_dfine_n', 'deim_rtdetrv2_r18'])
def test_samples_have_the_size(tmp_path, name, size, resolved):
    toy.write_data_set(tmp_path)
    expected = (64, 64) if size == 64 else size
    cfg = resolved(CONFIGS / f'{name}.py', image_size=size)
    options = dict(
        data_root=str(tmp_path),
        ann_file='all.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('disc', 'ring')),
    )
    cfg.train_dataloader.dataset.dataset.update(options)
    cfg.val_dataloader.dataset.update(options)
    np.random.seed(0)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = DATASETS.build(loader.dataset)
        shapes = {tuple(dataset[index]['data_samples'].img_shape) for index in range(4)}
        assert shapes == {expected}
