import pytest
import toy
from mmengine.config import Config

from deim_mmdet.engine.config import load_config, override_length

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


def test_image_size_reaches_pipelines_and_multi_scale():
    cfg = load_config(CONFIG, {'image_size': 320})
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        resizes = [t for t in loader.dataset.pipeline if t.type == 'Resize']
        assert [tuple(t.scale) for t in resizes] == [(320, 320)]
    assert cfg.model.data_preprocessor.batch_augments[1].base_size == 320
    assert cfg.train_dataloader.dataset.pipeline[0].mosaic[0].tile_size == 160


@pytest.mark.parametrize('size', [100, 0, -32, 'large'])
def test_image_size_must_suit_the_network(size):
    with pytest.raises(ValueError, match=f'image_size={size} must be a positive multiple of 32'):
        load_config(CONFIG, {'image_size': size})


def test_absent_config_names_the_ways_to_give_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no config .*none\.py.*mim train'):
        load_config(str(tmp_path / 'none.py'))


def test_variable_that_the_config_lacks(tmp_path):
    path = tmp_path / 'plain.py'
    path.write_text('model = dict()\n')
    with pytest.raises(ValueError, match='no variable data_root'):
        load_config(str(path), {'data_root': 'elsewhere'})


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
