import os
import re

from deim_mmdet.engine.config import check_no_conflict, load_config, override_length

import pytest
import toy
from mmengine.config import Config

CONFIG = str(toy.ROOT / 'configs' / 'deim_dfine_s.py')


def values_of(node, key):
    """All values under a key, anywhere in a config."""
    items = node.items() if hasattr(node, 'items') else enumerate(node)
    found = []
    for name, value in items:
        if name == key:
            found.append(value)
        if isinstance(value, (dict, list)):
            found.extend(values_of(value, key))
    return found


def test_without_options_it_is_the_file():
    assert load_config(CONFIG).to_dict() == Config.fromfile(CONFIG).to_dict()


def test_options_are_merged():
    cfg = load_config(CONFIG, {'train_cfg.max_epochs': 7, 'train_dataloader.batch_size': 3})
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (7, 3)


@pytest.mark.parametrize('root', ['/data/mine', '/data/mine/'])
def test_data_root_reaches_data_sets_and_evaluators(root):
    cfg = load_config(CONFIG, {'data_root': root})
    assert values_of(cfg, 'data_root') == ['/data/mine/'] * 4
    assert cfg.val_evaluator.ann_file == '/data/mine/annotations/instances_val2017.json'
    assert cfg.test_evaluator.ann_file == '/data/mine/annotations/instances_val2017.json'
    # Relative paths stay relative to the root.
    assert cfg.val_dataloader.dataset.ann_file == 'annotations/instances_val2017.json'


def test_absent_config_names_the_ways_to_give_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no config .*none\.py.*mim train'):
        load_config(str(tmp_path / 'none.py'))


def test_variable_that_the_config_lacks(tmp_path):
    path = tmp_path / 'plain.py'
    path.write_text('model = dict()\n')
    with pytest.raises(ValueError, match='the config has no data_root'):
        load_config(str(path), {'data_root': 'elsewhere'})


def custom(tmp_path, **edits):
    """A filled-in copy of the config for own data, in another folder."""
    text = (toy.ROOT / 'configs' / 'deim_dfine_custom.py').read_text()
    edits = {'_base_': CONFIG, **edits}
    for name, value in edits.items():
        text, count = re.subn(rf'(?m)^{name} = .*', f'{name} = {value!r}', text)
        assert count == 1
    path = tmp_path / 'mine.py'
    path.write_text(text)
    return str(path)


def what_runs(cfg):
    """All of a config that a training reads, variables aside."""
    names = [name for name in cfg if name.endswith(('_dataloader', '_evaluator', '_cfg'))]
    return {name: cfg[name] for name in [*names, 'model', 'recipe', 'load_from', 'custom_hooks']}


VARIABLES = dict(
    classes=['a', 'b', 'c'],
    data_root='elsewhere',
    train_annotations='t.json',
    train_images='nowhere/',
    val_annotations='v.json',
    val_images='there/',
    image_size=320,
    max_epochs=4,
    batch_size=2,
    num_workers=0,
    load_from='weights.pth',
    mal=False,
    dense_o2o=False,
)


@pytest.mark.parametrize('name', VARIABLES)
def test_option_of_a_template_variable_acts_as_the_edited_file(tmp_path, name):
    value = VARIABLES[name]
    edited = tuple(value) if name == 'classes' else value
    if name == 'data_root':
        edited = 'elsewhere/'
    (tmp_path / 'edited').mkdir()
    expected = what_runs(Config.fromfile(custom(tmp_path / 'edited', **{name: edited})))
    assert what_runs(load_config(custom(tmp_path), {name: value})) == expected
    assert what_runs(Config.fromfile(custom(tmp_path))) != expected


def test_options_of_template_variables_and_others_together(tmp_path):
    options = {'max_epochs': 4, 'batch_size': 2, 'val_dataloader.batch_size': 5}
    cfg = load_config(custom(tmp_path), options)
    assert cfg.train_cfg.max_epochs == 4
    assert [cfg[f'{s}_dataloader'].batch_size for s in ('train', 'val', 'test')] == [2, 5, 2]
    assert os.path.basename(cfg.filename) == 'mine.py'


def test_variable_of_a_base_and_parts_of_variables():
    cfg = load_config(
        CONFIG, {'train_pipeline.0.mosaic_prob': 0.25, 'test_pipeline.1.scale': (9, 9)}
    )
    assert cfg.train_dataloader.dataset.pipeline[0].mosaic_prob == 0.25
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (9, 9)


@pytest.mark.parametrize('text', ['\x0c# Own data\n{}', '# \u2028\n{}', 'a = "\x85"\n{}'])
def test_lines_of_a_config_are_those_of_python(tmp_path, text):
    """There are more characters at which str.splitlines cuts."""
    path = tmp_path / 'mine.py'
    path.write_text(text.format('max_epochs = 5\ntrain_cfg = dict(max_epochs=max_epochs)\n'))
    assert load_config(str(path), {'max_epochs': 3}).train_cfg.max_epochs == 3


def test_one_class_is_not_taken_for_its_letters(tmp_path):
    assert load_config(custom(tmp_path), {'classes': 'cat'}).model.bbox_head.num_classes == 1


@pytest.mark.parametrize(
    ('option', 'value', 'words'),
    [
        ('max_epoch', 4, 'no max_epoch.*max_epochs'),
        ('trian_cfg.max_epochs', 4, 'no trian_cfg.*train_cfg'),
        ('auto_scale_lr.enabled', False, 'auto_scale_lr.enabled.*auto_scale_lr.enable'),
        ('env_cfg.cudnn_bench', True, 'env_cfg.cudnn_benchmark'),
        ('mal', 'no', r'mal=no.*True.*bool'),
        ('max_epochs', 'many', 'max_epochs=many.*60.*int'),
        ('batch_size', True, 'batch_size=True.*8.*int'),
    ],
)
def test_options_that_nothing_would_follow_are_refused(tmp_path, option, value, words):
    with pytest.raises(ValueError, match=words):
        load_config(custom(tmp_path), {option: value})


def test_variable_that_nothing_follows_from(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = '{CONFIG}'\nnotes = 'none'\n")
    with pytest.raises(ValueError, match='notes is a variable from which nothing'):
        load_config(str(path), {'notes': 'other'})


def test_dumped_config_carries_root_and_size(tmp_path):
    """Its values stand for themselves: nothing follows from its variables."""
    path = tmp_path / 'dumped.py'
    cfg = load_config(CONFIG)
    # As configs of version 0.1 have it.
    cfg.model.data_preprocessor.batch_augments[1].base_size = 640
    cfg.dump(path)
    cfg = load_config(str(path), {'data_root': '/data/mine', 'image_size': 320})
    assert cfg.val_evaluator.ann_file == '/data/mine/annotations/instances_val2017.json'
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (320, 320)


@pytest.mark.parametrize('root', ['data/coco', 'data/coco/'])
def test_new_root_leaves_siblings_of_the_old_one_alone(tmp_path, root):
    path = tmp_path / 'dumped.py'
    files = ['data/coco/a.json', 'data/coco2017/b.json', 'data/coco', 'data/coco/', '']
    path.write_text(f'data_root = {root!r}\ntest_evaluator = dict(files={files})\n')
    cfg = load_config(str(path), {'data_root': '/new'})
    assert cfg.data_root == '/new/'
    assert cfg.test_evaluator.files == ['/new/a.json', 'data/coco2017/b.json', '/new/', '/new/', '']


def test_new_root_in_place_of_an_empty_one_is_refused(tmp_path):
    """Every text begins with the empty one, the names of types as well."""
    path = tmp_path / 'dumped.py'
    path.write_text("data_root = ''\nevaluator = dict(type='CocoMetric', ann_file='/a.json')\n")
    with pytest.raises(ValueError, match=r'data_root: it is empty.*dataset\.data_root'):
        load_config(str(path), {'data_root': '/new'})


@pytest.mark.parametrize('root', ['data/mine', 'data/mine/'])
def test_root_of_own_data_with_and_without_slash(tmp_path, root):
    cfg = Config.fromfile(custom(tmp_path, data_root=root))
    assert cfg.val_evaluator.ann_file == 'data/mine/annotations/val.json'


def test_two_settings_of_one_thing_are_refused():
    arguments = {'train_cfg.max_epochs': ('--epochs', 5), 'work_dir': ('--work-dir', None)}
    check_no_conflict({'train_cfg.max_epochs': 5, 'work_dir': 'there'}, arguments)
    check_no_conflict(None, arguments)
    with pytest.raises(ValueError, match=r'train_cfg.max_epochs=4 and --epochs 5'):
        check_no_conflict({'train_cfg.max_epochs': 4}, arguments)


def test_length_is_put_where_training_reads_it():
    cfg = load_config(CONFIG)
    before = cfg.to_dict()
    override_length(cfg)
    assert cfg.to_dict() == before
    override_length(cfg, epochs=7, batch_size=3, val_interval=2)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (7, 2)
    assert cfg.train_dataloader.batch_size == 3
    assert cfg.val_dataloader.batch_size == before['val_dataloader']['batch_size']


def test_length_of_a_config_that_has_none():
    cfg = Config(dict(train_cfg=dict(max_iters=9), train_dataloader=dict(batch_sampler=dict())))
    with pytest.raises(ValueError, match=r'max_epochs.*max_iters'):
        override_length(cfg, epochs=3)
    with pytest.raises(ValueError, match='batch_size'):
        override_length(cfg, batch_size=3)
