import json
import re
from argparse import Namespace

from deim_mmdet.checkpoints import convert_reference_state_dict

import golden
import pytest
import torch
from mmdet.apis import init_detector
from mmdet.registry import MODELS
from reference_checkpoints import reference_state_dict

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('convert_checkpoint.py')


@pytest.fixture
def convert(tool, tmp_path, capsys):
    """Run the tool on a checkpoint; returns the file that it wrote and what it printed."""

    def run(content, *options, name='dfine_n_coco.pth', out='out.pth'):
        source = tmp_path / name
        if content is not None:
            torch.save(content, source)
        tool.main([str(source), str(tmp_path / out), *options])
        return Namespace(path=tmp_path / out, printed=capsys.readouterr().out)

    return run


@pytest.fixture
def refused(tool, tmp_path):
    """Run the tool on a checkpoint that it must refuse; returns its one message."""

    def run(content, *options, name='dfine_n_coco.pth'):
        torch.save(content, tmp_path / name)
        with pytest.raises(SystemExit) as stop:
            tool.main([str(tmp_path / name), str(tmp_path / 'out.pth'), *options])
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert '\n' not in str(stop.value)
        return str(stop.value)

    return run


@pytest.mark.parametrize('name', ['deim_dfine_n', 'rtdetrv2_r18'])
def test_there_and_back_is_bit_for_bit(convert, name):
    reference = reference_state_dict(name)
    # As the reference saves a training: the average is what it evaluates.
    raw = {key: value + 1 for key, value in reference.items()}
    content = dict(
        model=raw, ema=dict(module=reference, updates=9), last_epoch=3, date='2025-01-01'
    )
    there = convert(content, name=f'{name}_coco.pth')
    assert re.search(rf'^model: {name}$', there.printed, re.MULTILINE)
    assert re.search(r'^ +\d+ encoder\.fpn_blocks → neck\.fpn_blocks$', there.printed, re.MULTILINE)
    back = convert(None, '--reverse', name='out.pth', out='back.pth')
    state_dict = torch.load(back.path)['model']
    assert state_dict.keys() == reference.keys()
    for key, value in reference.items():
        assert torch.equal(state_dict[key], value), key


def test_weights_of_rtdetrv4_and_classes_of_objects365_there_and_back(convert):
    """The layer that only RT-DETRv4 has tells its model, whatever the file is called."""
    reference = reference_state_dict('deim_dfine_n', num_classes=366)
    projector = {
        f'encoder.feature_projector.0.{leaf}': torch.ones(3) for leaf in ('weight', 'bias')
    }
    there = convert(dict(model=reference | projector), name='best.pth')
    assert re.search(r'^model: deim_dfine_n$', there.printed, re.MULTILINE)
    assert 'left out: ' in there.printed
    assert 'warning' not in there.printed
    assert 'classes: 366, unused_0, Person, Sneakers' in there.printed
    back = torch.load(convert(None, '--reverse', name='out.pth', out='back.pth').path)['model']
    assert back.keys() == reference.keys()
    assert all(torch.equal(back[key], value) for key, value in reference.items())
    doubtful = convert(dict(model=reference), name='my_deim.pth')
    assert 'warning: no weights tell the activations: taken for deim_dfine_n' in doubtful.printed


@pytest.mark.parametrize('config', [(), ('--config', 'deim_dfine_s_distilled')])
def test_what_only_losses_train_is_left_out(convert, config):
    """A distilled training's checkpoint is one of the network that was trained."""
    reference = reference_state_dict('deim_dfine_s')
    ours = convert_reference_state_dict(reference)
    term = 'bbox_head.criterion.auxiliary_terms.loss_distill'
    projector = {
        f'{term}.weight': torch.tensor(5.0),
        f'{term}.projector.weight': torch.ones(768, 256),
        f'{term}.projector.bias': torch.ones(768),
    }
    content = dict(state_dict=ours | projector, meta=dict(experiment_name='deim_dfine_s'))
    back = convert(content, '--reverse', *config, out='back.pth')
    assert f'   3 joined, derived or left out: {term}.weight' in back.printed
    state_dict = torch.load(back.path)['model']
    assert state_dict.keys() == reference.keys()
    assert all(torch.equal(state_dict[key], value) for key, value in reference.items())


@pytest.mark.parametrize('experiment', ['deim_dfine_n', 'dfine_n', 'mine_20250101_000000', None])
def test_any_training_of_a_network_goes_back(convert, experiment):
    """Models that differ in their activations alone have the same names."""
    reference = reference_state_dict('deim_dfine_n')
    meta = dict(experiment_name=experiment)
    content = dict(state_dict=convert_reference_state_dict(reference), meta=meta)
    back = convert(content, '--reverse', name='epoch_4.pth', out='back.pth')
    assert torch.load(back.path)['model'].keys() == reference.keys()
    expected = 'dfine_n' if experiment == 'dfine_n' else 'deim_dfine_n'
    assert f'model: {expected}\n' in back.printed


def test_anchors_are_of_the_size_that_the_checkpoint_was_trained_at(convert, tmp_path):
    """Unless --config says another one."""
    ours = convert_reference_state_dict(reference_state_dict('deim_dfine_n'))
    config = tmp_path / 'tall.py'
    config.write_text(f"_base_ = '{golden.CONFIGS}/deim_dfine_n.py'\nimage_size = (128, 64)\n")
    ran = tmp_path / 'ran'
    cfg = f'image_size = (64, 96)\nopen({str(ran)!r}, "w").close()\n'
    meta = dict(experiment_name='deim_dfine_n', cfg=cfg)
    for options, cells in (((), 4 * 6 + 2 * 3), (('--config', str(config)), 8 * 4 + 4 * 2)):
        back = convert(dict(state_dict=ours, meta=meta), '--reverse', *options, out='back.pth')
        assert torch.load(back.path)['model']['decoder.anchors'].shape == (1, cells, 4)
    assert not ran.exists()


def test_written_checkpoint_states_config_and_classes(convert):
    written = convert(dict(model=reference_state_dict('dfine_n')))
    meta = torch.load(written.path)['meta']
    assert meta['experiment_name'] == 'dfine_n'
    assert meta['dataset_meta']['classes'][:2] == ('person', 'bicycle')
    config = golden.CONFIGS / 'dfine_n.py'
    model = init_detector(str(config), str(written.path), device='cpu')
    assert model.dataset_meta['classes'][1] == 'bicycle'
    expected = convert_reference_state_dict(reference_state_dict('dfine_n'))
    assert all(torch.equal(value, expected[k]) for k, value in model.state_dict().items())
    cfg = golden.Config.fromstring(meta['cfg'], '.py')
    assert cfg.model == golden.Config.fromfile(config).model


def test_other_classes_get_their_names(convert, tmp_path):
    content = dict(model=reference_state_dict('dfine_n', num_classes=3))
    unnamed = convert(content)
    assert 'classes: 3, names unknown' in unnamed.printed
    meta = torch.load(unnamed.path)['meta']
    assert 'dataset_meta' not in meta
    assert golden.Config.fromstring(meta['cfg'], '.py').model.bbox_head.num_classes == 3
    named = convert(content, '--classes', 'a', 'b', 'c')
    assert torch.load(named.path)['meta']['dataset_meta'] == dict(classes=('a', 'b', 'c'))
    annotations = tmp_path / 'train.json'
    categories = [dict(id=1, name='x'), dict(id=2, name='y')]
    annotations.write_text(json.dumps(dict(categories=categories)))
    named = convert(content, '--ann-file', str(annotations))
    assert torch.load(named.path)['meta']['dataset_meta'] == dict(classes=('unused_0', 'x', 'y'))


def reference_resnet_names(model):
    """Names of ResNet-vd's ImageNet files, written out for 18 layers."""
    parts = {f'conv1.conv1_{k}.{kind}': f'stem.{3 * k - 3 + (kind == "norm")}'
             for k in (1, 2, 3) for kind in ('conv', 'norm')}  # fmt: skip
    for stage in range(4):
        for block in range(2):
            theirs, ours = f'res_layers.{stage}.blocks.{block}', f'layer{stage + 1}.{block}'
            for k, letter in enumerate('ab', start=1):
                parts[f'{theirs}.branch2{letter}.conv'] = f'{ours}.conv{k}'
                parts[f'{theirs}.branch2{letter}.norm'] = f'{ours}.bn{k}'
            if block == 0:
                short = f'{theirs}.short' if stage == 0 else f'{theirs}.short.conv'
                parts[f'{short}.conv'] = f'{ours}.downsample.1'
                parts[f'{short}.norm'] = f'{ours}.downsample.2'
    own = model.state_dict()
    return {
        f'{theirs}.{name.removeprefix(ours + ".")}': value
        for theirs, ours in parts.items()
        for name, value in own.items()
        if name.startswith(ours + '.')
    }


def test_backbone_weights_there_and_back(convert):
    model = MODELS.build(dict(type='ResNetVd', depth=18))
    reference = reference_resnet_names(model)
    assert len(reference) == len(model.state_dict())
    there = convert(reference, name='ResNet18_vd_pretrained_from_paddle.pth')
    assert 'model: ResNet-vd 18' in there.printed
    initial = dict(type='Pretrained', checkpoint=str(there.path))
    built = MODELS.build(dict(type='ResNetVd', depth=18, init_cfg=initial))
    built.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(built.state_dict()[name], value), name
    back = torch.load(convert(None, '--reverse', name='out.pth', out='back.pth').path)
    assert back.keys() == reference.keys()
    assert all(torch.equal(back[name], value) for name, value in reference.items())


def test_hgnetv2_weights_keep_their_names(convert):
    model = MODELS.build(dict(type='HGNetv2', arch='B0', use_lab=True))
    written = convert(model.state_dict(), name='PPHGNetV2_B0_stage1.pth')
    assert 'model: HGNetv2-B0 with learnable affine' in written.printed
    assert torch.load(written.path)['state_dict'].keys() == model.state_dict().keys()


def test_file_without_parameters(refused):
    assert 'no parameters, only epoch' in refused(dict(epoch=3))


def test_truncated_file(convert, tmp_path):
    path = tmp_path / 'cut.pth'
    torch.save(dict(model=reference_state_dict('dfine_n')), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(SystemExit, match=r'cut\.pth was not converted: .*damaged'):
        convert(None, name='cut.pth')
    assert [file.name for file in tmp_path.iterdir()] == ['cut.pth']


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_code_in_a_file_does_not_run(refused, tmp_path):
    trap = tmp_path / 'trap'
    message = refused(dict(model=reference_state_dict('dfine_n'), extra=RunsCode(trap)))
    assert re.search(r'holds an object of type \w+\.open, which is refused', message)


def test_unknown_architecture(refused):
    state_dict = reference_state_dict('dfine_n')
    state_dict['encoder.fpn_blocks.0.cv4.conv.weight'] = torch.zeros(1, 2, 3, 4)
    message = refused(dict(model=state_dict))
    assert 'dfine_n: 1 of another shape' in message
    assert 'neck.fpn_blocks.0.cv4.conv.weight' in message


def test_unknown_names(refused):
    state_dict = reference_state_dict('dfine_n') | {'decoder.mask_head.weight': torch.zeros(1)}
    message = refused(dict(model=state_dict))
    assert '1 of 675 names are not of a reference' in message
    assert 'decoder.mask_head.weight' in message
    assert 'no model known here' in refused({'layer.weight': torch.zeros(1)})
    message = refused({'layer.weight': torch.zeros(1)}, '--reverse')
    assert 'the names of this one are unknown: layer.weight' in message


def test_mixture_of_two_models(refused):
    mixed = {k: v for k, v in reference_state_dict('deim_dfine_s').items() if 'decoder.' not in k}
    mixed |= {k: v for k, v in reference_state_dict('dfine_n').items() if k.startswith('decoder.')}
    assert 'mixture of several models' in refused(dict(model=mixed))
    mixed |= {k: v for k, v in reference_state_dict('rtdetrv2_r18').items() if k.startswith('deco')}
    assert 'of no known model' in refused(dict(model=mixed))


def test_ambiguous_model_needs_a_config(refused, convert):
    content = dict(model=reference_state_dict('dfine_n'))
    message = refused(content, name='best_stg2.pth')
    assert 'deim_dfine_n and dfine_n have the same parameters' in message
    assert '--config deim_dfine_n' in message
    written = convert(content, '--config', 'dfine_n', name='best_stg2.pth')
    assert torch.load(written.path)['meta']['experiment_name'] == 'dfine_n'


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--classes', 'a', 'b'], '2 class names for a checkpoint of 80 classes'),
        (['--config', 'nonsense'], 'there is no config nonsense'),
        (['--reverse'], '--reverse needs a checkpoint of this package'),
        (['--ann-file', 'none.json'], 'none.json'),
    ],
    ids=['classes', 'config', 'reverse', 'annotations'],
)
def test_bad_options(refused, options, words):
    assert words in refused(dict(model=reference_state_dict('dfine_n')), *options)


def test_own_checkpoint_is_not_converted_again(refused):
    own = convert_reference_state_dict(reference_state_dict('dfine_n'))
    assert 'is a checkpoint of this package already' in refused(dict(state_dict=own))


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['a.pth', 'a.pth'], 'same file'),
        (['a.pth', 'b.pth', '--reverse', '--classes', 'x'], 'hold no class names'),
    ],
)
def test_bad_command_lines(tool, capsys, arguments, words):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert words in capsys.readouterr().err
