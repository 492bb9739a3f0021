"""The command, in this process: exporting, checking and refusing."""

import json
import sys

from deim_mmdet.deployment import fuse
from deim_mmdet.engine import set_input_channels
from deim_mmdet.engine.config import load_config

import cv2
import numpy as np
import pytest
import torch
from golden import CONFIGS, build_model, filled_model
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from red_boxes import write_red_boxes
from typed_configs import SPELLINGS, spelled

pytestmark = pytest.mark.slow

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
CONFIG = str(CONFIGS / 'deim_dfine_n.py')
SUFFIXES = dict(onnx='.onnx', openvino='.xml', tensorrt='.engine')


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('export.py')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('checkpoint') / 'n.pth'
    torch.save(dict(state_dict=filled_model('deim_dfine_n').float().state_dict()), path)
    return path


@pytest.fixture
def run(tool, checkpoint, monkeypatch):
    def run(*options, config=CONFIG, checkpoint=checkpoint):
        command = ['export.py', str(config), str(checkpoint), *map(str, options)]
        monkeypatch.setattr(sys, 'argv', command)
        tool.main()

    return run


def test_onnx(run, tmp_path, capsys):
    out = tmp_path / 'folder' / 'model.onnx'
    run('--out', out, '--size', 128, 192)
    printed = capsys.readouterr().out
    assert out.is_file()
    assert 'opset 17, input Bx3x128x192' in printed
    assert 'one image' in printed
    assert 'a batch of two' in printed


def test_a_model_that_keeps_proportions_says_so(run, tmp_path):
    import onnx

    out = tmp_path / 'model.onnx'
    run('--out', out, '--size', 64, 96, '--cfg-options', 'keep_ratio=True')
    properties = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert properties['letterbox'] == 'true'
    assert 'padding' not in properties
    padding = 'test_dataloader.dataset.pipeline.1.pad_val=7'
    run('--out', out, '--size', 64, 96, '--cfg-options', 'keep_ratio=True', padding)
    properties = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert properties['padding'] == '7'


def test_a_test_set_of_several(tool, run, tmp_path):
    """The first one tells the size and shows a picture."""
    config = tmp_path / 'several.py'
    config.write_text(
        f"_base_ = '{CONFIG}'\n"
        'image_size = 64\n'
        'part = _base_.test_dataloader.dataset\n'
        "both = dict(_delete_=True, type='ConcatDataset', datasets=[part, part])\n"
        'test_dataloader = dict(dataset=both)\n'
    )
    cfg = tool.load_config(str(config), None)
    assert tool.network_size(cfg) == (64, 64)
    assert tool.letterbox_of(cfg) is None
    assert type(tool.image_loader(cfg)).__name__ == 'LoadImageFromFile'
    run('--out', tmp_path / 'model.onnx', config=config)


COCO = CocoDataset.METAINFO['classes']


@pytest.mark.parametrize('saved', [COCO, COCO[::-1]])
@pytest.mark.parametrize('given', [None, COCO])
def test_labels_are_named_as_the_checkpoint_does(run, checkpoint, tmp_path, saved, given, capsys):
    """Whatever order the config gives them in."""
    import onnx

    path = tmp_path / 'named.pth'
    content = torch.load(checkpoint)
    torch.save(dict(content, meta=dict(dataset_meta=dict(classes=saved))), path)
    config = tmp_path / 'named.py'
    metainfo = {} if given is None else dict(classes=given)
    config.write_text(
        f"_base_ = '{CONFIG}'\ntest_dataloader = dict(dataset=dict(metainfo={metainfo}))\n"
    )
    out = tmp_path / 'model.onnx'
    run('--out', out, '--size', 64, 64, config=config, checkpoint=path)
    properties = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert tuple(json.loads(properties['classes'])) == saved
    assert f'labels: {", ".join(saved)}' in capsys.readouterr().out


def test_config_of_other_classes_is_refused(run, checkpoint, tmp_path):
    path = tmp_path / 'named.pth'
    torch.save(dict(torch.load(checkpoint), meta=dict(dataset_meta=dict(classes=COCO))), path)
    option = 'test_dataloader.dataset.metainfo.classes=' + ','.join(COCO[1:]) + ',zebu'
    with pytest.raises(SystemExit, match=r"classes differ: the checkpoint .*'person'.*'zebu'"):
        run('--out', tmp_path / 'model.onnx', '--cfg-options', option, checkpoint=path)


def test_tensorrt_commands_without_tensorrt(run, tmp_path, capsys):
    run('--backend', 'tensorrt', '--out', tmp_path / 'model.engine', '--size', 128, 128)
    printed = capsys.readouterr().out
    assert (tmp_path / 'model.onnx').is_file()
    assert printed.count('trtexec --onnx=') == 2


def test_openvino(run, tmp_path):
    pytest.importorskip('openvino')
    run('--backend', 'openvino', '--out', tmp_path / 'model.xml', '--size', 128, 128)
    assert (tmp_path / 'model.xml').is_file()


@pytest.mark.parametrize('backend', ['openvino', 'tensorrt'])
def test_int8_is_calibrated_and_evaluated(run, tmp_path, capsys, backend):
    import onnx

    if backend == 'openvino':
        pytest.importorskip('openvino')
    for split in ('train', 'val'):
        write_red_boxes(tmp_path, split)
    config = CONFIGS / 'demo' / 'deim_dfine_demo.py'
    checkpoint = tmp_path / 'demo.pth'
    model = MODELS.build(load_config(str(config)).model)
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    out = tmp_path / f'model{SUFFIXES[backend]}'
    options = '--backend', backend, '--int8', '--calibration', 2, '--evaluate', '--out', out
    settings = f'data_root={tmp_path}/', 'image_size=64'
    run(*options, '--cfg-options', *settings, config=config, checkpoint=checkpoint)
    printed = capsys.readouterr().out
    assert printed.count('coco/bbox_mAP 0.') == 2
    kinds = {node.op_type for node in onnx.load(tmp_path / 'model.onnx').graph.node}
    assert {'QuantizeLinear', 'DequantizeLinear'} <= kinds
    assert printed.count('trtexec --onnx=') == (2 if backend == 'tensorrt' else 0)
    # The file in single precision is not left over.
    assert [path.name for path in tmp_path.glob('*.onnx')] == ['model.onnx']


def test_a_model_that_differs_is_refused(tool, run, tmp_path, monkeypatch):
    class Differing(tool.ONNXRuntime):
        def __call__(self, *inputs):
            found = super().__call__(*inputs)
            return found._replace(boxes=found.boxes + 1)

    monkeypatch.setattr(tool, 'ONNXRuntime', Differing)
    with pytest.raises(SystemExit, match='differs from PyTorch by more than rounding'):
        run('--out', tmp_path / 'model.onnx', '--size', 128, 128)


def test_the_default_size_is_that_of_the_test_pipeline(tool):
    cfg = tool.load_config(CONFIG, dict(image_size=320))
    assert tool.network_size(cfg) == (320, 320)
    pipeline = cfg.test_dataloader.dataset.pipeline
    for spelling in SPELLINGS:
        cfg.test_dataloader.dataset.pipeline = spelled(pipeline, spelling)
        assert tool.network_size(cfg) == (320, 320)
    cfg.test_dataloader.dataset.pipeline[1].keep_ratio = True
    with pytest.raises(ValueError, match='--size HEIGHT WIDTH'):
        tool.network_size(cfg)


def test_pictures_become_inputs(tool, tmp_path):
    cv2 = pytest.importorskip('cv2')
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[..., 2] = 255  # red, as cv2 writes it
    cv2.imwrite(str(tmp_path / 'red.png'), picture)
    pixels, sizes = tool.read_image(tmp_path / 'red.png', (32, 64))
    assert pixels.shape == (1, 3, 32, 64)
    assert pixels.dtype == np.float32
    assert (pixels[0, 0] == 1).all()
    assert (pixels[0, 1:] == 0).all()
    assert sizes.tolist() == [[40, 20]]
    with pytest.raises(FileNotFoundError, match=r'absent\.png is not there: give the path'):
        tool.read_image(tmp_path / 'absent.png', (32, 64))


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channels(tool, tmp_path, monkeypatch, capsys, channels):
    """The file takes the values of image files and gives what prediction from them gives."""
    mean, std = [100.0 * i for i in range(1, channels + 1)], [9000.0] * channels
    cfg = tool.load_config(CONFIG, None)
    set_input_channels(cfg, mean, std)
    cfg.dump(tmp_path / 'channels.py')
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'channels.pth')
    array = np.random.default_rng(0).integers(60000, size=(96, 80, channels)).astype(np.uint16)
    np.save(tmp_path / 'a.npy', array)
    out = tmp_path / 'model.onnx'
    arguments = [tmp_path / 'channels.py', tmp_path / 'channels.pth', '--out', out]
    arguments += ['--size', 64, 64, '--image', tmp_path / 'a.npy']
    monkeypatch.setattr('sys.argv', ['export.py', *map(str, arguments)])
    tool.main()
    assert f'input Bx{channels}x64x64' in capsys.readouterr().out
    runtime = tool.ONNXRuntime(out)
    assert runtime.session.get_modelmeta().custom_metadata_map['values'] == 'file'
    resized = cv2.resize(array, (64, 64)).reshape(64, 64, channels).transpose(2, 0, 1)
    images = model.data_preprocessor(
        dict(inputs=[torch.from_numpy(resized.astype(np.float32))], data_samples=None)
    )['inputs']
    found = runtime(resized[None].astype(np.float32), np.array([[80, 96]]))
    for detector in (model, fuse(model)):
        with torch.no_grad():
            logits, boxes = detector.bbox_head(detector.neck(detector.backbone(images)))
            expected = detector.bbox_head.postprocess(logits, boxes, torch.tensor([[80, 96]]))
        np.testing.assert_allclose(found.scores, expected[2], atol=1e-4)


def test_the_example_is_of_the_test_set_if_it_is_there(tool, tmp_path):
    cfg = tool.load_config(CONFIG, dict(data_root=str(tmp_path)))
    pytest.importorskip('sklearn')
    assert tool.example_image(cfg).name == 'china.jpg'
    (tmp_path / 'val2017').mkdir()
    (tmp_path / 'val2017' / 'b.jpg').touch()
    assert tool.example_image(cfg) == tmp_path / 'val2017' / 'b.jpg'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(checkpoint='absent.pth'), 'there is no checkpoint absent.pth'),
        (dict(options=['--out', 'model.txt']), 'a file for onnx ends in .onnx'),
        (dict(options=['--int8', '--calibration', '0']), '--calibration must be at least 1'),
        (dict(options=['--int8', '--half']), 'not allowed with argument'),
        (dict(options=['--opset', '16']), '--opset must be at least 17'),
    ],
)
def test_mistakes_on_the_command_line(run, capsys, options, message):
    with pytest.raises(SystemExit):
        run(*options.pop('options', []), **options)
    assert message in capsys.readouterr().err


def test_a_size_that_the_stride_does_not_divide(run, tmp_path):
    with pytest.raises(SystemExit, match=r'^UserError: the input size 60x64 .* e\.g\. 64 64$'):
        run('--size', 60, 64, '--out', tmp_path / 'm.onnx')


def test_a_checkpoint_of_another_model(run, tmp_path):
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict=build_model('deim_dfine_s').state_dict()), path)
    with pytest.raises(SystemExit, match=r'^UserError: \d+ parameters of the checkpoint'):
        run('--size', 128, 128, '--out', tmp_path / 'm.onnx', checkpoint=path)
