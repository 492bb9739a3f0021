"""The program without torch finds what the exported graph gives, and draws it."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

from deim_mmdet.datasets import LoadImageChecked
from deim_mmdet.deployment.inputs import read_image

import cv2
import numpy as np
import pytest
from oriented import WRITERS

pytestmark = pytest.mark.slow
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')


def write_model(path, channels=3, **metadata):
    """A graph with the exported models' inputs and outputs, and a box on a quarter of an image."""
    from onnx import TensorProto, helper

    def tensor(name, kind, values):
        values = np.asarray(values)
        return helper.make_tensor(name, kind, values.shape, values.flatten().tolist())

    nodes = [
        # The box begins at the corner; the score is the mean of the first channel.
        helper.make_node('Slice', ['images', 'zero', 'one', 'axis'], ['red']),
        helper.make_node('ReduceMean', ['red'], ['mean'], axes=[1, 2, 3], keepdims=0),
        helper.make_node('Unsqueeze', ['mean', 'axis'], ['scores']),
        helper.make_node('Cast', ['orig_target_sizes'], ['sizes'], to=TensorProto.FLOAT),
        helper.make_node('Mul', ['sizes', 'half'], ['corner']),
        helper.make_node('Mul', ['sizes', 'none'], ['origin']),
        helper.make_node('Concat', ['origin', 'corner'], ['box'], axis=1),
        helper.make_node('Unsqueeze', ['box', 'axis'], ['boxes']),
        helper.make_node('Cast', ['scores'], ['rounded'], to=TensorProto.INT64),
        helper.make_node('Mul', ['rounded', 'zero'], ['nothing']),
        helper.make_node('Add', ['nothing', 'one'], ['labels']),
    ]
    graph = helper.make_graph(
        nodes,
        'detector',
        [
            helper.make_tensor_value_info('images', TensorProto.FLOAT, ['batch', channels, 32, 64]),
            helper.make_tensor_value_info('orig_target_sizes', TensorProto.INT64, ['batch', 2]),
        ],
        [
            helper.make_tensor_value_info('labels', TensorProto.INT64, ['batch', 1]),
            helper.make_tensor_value_info('boxes', TensorProto.FLOAT, ['batch', 1, 4]),
            helper.make_tensor_value_info('scores', TensorProto.FLOAT, ['batch', 1]),
        ],
        [
            tensor('zero', TensorProto.INT64, [0]),
            tensor('one', TensorProto.INT64, [1]),
            tensor('axis', TensorProto.INT64, [1]),
            tensor('half', TensorProto.FLOAT, [0.5]),
            tensor('none', TensorProto.FLOAT, [0.0]),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9)
    helper.set_model_props(made, dict(classes=json.dumps(['cat', 'dog']), **metadata))
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return path


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp('model') / 'model.onnx')


@pytest.fixture
def run(repo_root, tmp_path):
    # A finder that refuses torch and this package: the program goes where they aren't.
    refuse = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'deim_mmdet', 'mmdet', 'mmengine', 'mmcv'):
            raise ImportError(f'{name} is not here')
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""

    def run(*arguments, code=0):
        command = [sys.executable, '-c', refuse, repo_root / 'tools' / 'detect.py', *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


def write_image(path, channels, dtype):
    """An image of random values; an array has its channels first."""
    image = np.random.default_rng(0).integers(0, 255, (50, 70, channels)).astype(dtype)
    if path.suffix == '.npy':
        np.save(path, image.transpose(2, 0, 1))
    elif path.suffix == '.tif':
        cv2.imwritemulti(str(path), [*image.transpose(2, 0, 1)])
    else:
        cv2.imwrite(str(path), image)


def test_the_short_program_of_the_page_finds_the_same(model, repo_root, tmp_path, run):
    page = (repo_root / 'docs' / 'deployment.md').read_text()
    [code] = [c for c in re.findall(r'```python\n(.*?)```', page, re.DOTALL) if 'sys.argv' in c]
    assert len(code.splitlines()) <= 30
    (tmp_path / 'detect.py').write_text(code)
    write_image(tmp_path / 'picture.png', 3, np.uint8)
    picture, short, long = (tmp_path / f'{name}.png' for name in ('picture', 'short', 'long'))
    command = [sys.executable, tmp_path / 'detect.py', model, picture, short]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    run(model, picture, '--out', long)
    before, mine, whole = (cv2.imread(str(path)) for path in (picture, short, long))
    assert done.stdout.startswith('dog [0, 0, 35, 25] 0.5')
    # A box is drawn at the same place, in another colour.
    drawn, expected = ((after != before).any(-1) for after in (mine, whole))
    assert drawn[25, :35].all()
    assert expected[25, :35].all()


@pytest.mark.parametrize(
    ('file', 'channels', 'dtype', 'metadata', 'loader'),
    [
        ('a.png', 3, np.uint8, {}, None),
        ('a.png', 3, np.uint8, dict(letterbox='true'), None),
        ('a.png', 3, np.uint8, dict(letterbox='true', padding='7'), None),
        ('a.png', 1, np.uint8, dict(values='file'), 'grayscale'),
        ('a.png', 3, np.uint16, dict(values='file', letterbox='true'), 'unchanged'),
        ('a.png', 4, np.uint8, dict(values='file'), 'unchanged'),
        ('a.npy', 6, np.float64, dict(values='file', letterbox='true'), 'unchanged'),
        ('a.tif', 5, np.uint16, dict(values='file'), 'unchanged'),
    ],
)
def test_inputs_are_those_of_the_package(
    load_tool, tmp_path, file, channels, dtype, metadata, loader
):
    path = tmp_path / file
    write_image(path, channels, dtype)
    loader = loader and LoadImageChecked(loader, channels=channels)
    padding = metadata.get('padding')
    letterbox = dict(pad_val=padding and float(padding)) if 'letterbox' in metadata else None
    expected, _ = read_image(path, (64, 128), letterbox, loader)
    tool = load_tool('detect.py')
    model = tool.Model(None, (channels, 64, 128), metadata)
    image = tool.read(path, model)
    np.testing.assert_allclose(tool.to_input(image, model), expected, atol=1e-6)
    assert tool.to_picture(image).shape == (50, 70, 3)


@pytest.mark.parametrize('suffix', ['png', 'tiff'])
@pytest.mark.parametrize('channels', [1, 3])
def test_pictures_of_16_bits_are_turned_as_the_package_turns_them(
    load_tool, tmp_path, suffix, channels
):
    path = tmp_path / f'a.{suffix}'
    stored = np.random.default_rng(0).integers(65536, size=(50, 70, channels)).astype(np.uint16)
    path.write_bytes(WRITERS[suffix](stored.squeeze(), 6))
    tool = load_tool('detect.py')
    found = tool.read(path, tool.Model(None, (channels, 64, 128), dict(values='file')))
    np.testing.assert_array_equal(found, np.rot90(stored, -1))
    loaded = LoadImageChecked('unchanged').transform(dict(img_path=str(path)))
    np.testing.assert_array_equal(found, loaded['img'])
    # As one that takes three channels in [0, 1].
    model = tool.Model(None, (3, 64, 128), {})
    expected, size = read_image(path, (64, 128))
    assert size.tolist() == [[50, 70]]
    np.testing.assert_array_equal(tool.to_input(tool.read(path, model), model), expected)
    path.write_bytes(b'')
    assert tool.read(path, model) is None
    with pytest.raises(FileNotFoundError, match='is not a picture'):
        read_image(path, (64, 128))


def picture(path, red):
    image = np.zeros((80, 120, 3), np.uint8)
    image[..., 2] = red
    cv2.imwrite(str(path), image)
    return image


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_picture(run, model, tmp_path, suffix):
    if suffix == '.xml':
        openvino = pytest.importorskip('openvino')
        path = tmp_path / 'model.xml'
        openvino.save_model(openvino.Core().read_model(str(model)), str(path))
        model = path
    image = picture(tmp_path / 'a.png', red=153)
    assert '1 objects' in run(model, tmp_path / 'a.png', '--out', tmp_path / 'out.png')
    drawn = cv2.imread(str(tmp_path / 'out.png'))
    assert drawn.shape == image.shape
    # The box covers the left upper quarter; its lines are two pixels wide. The score is 0.6.
    changed = (drawn != image).any(-1)
    assert changed[40, 10:50].all()
    assert changed[20:40, 60].all()
    assert not changed[50:].any()
    out = tmp_path / 'other.png'
    assert '0 objects' in run(model, tmp_path / 'a.png', '--out', out, '--threshold', 0.61)
    np.testing.assert_array_equal(cv2.imread(str(out)), image)


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_other_channels(run, tmp_path, suffix):
    model = write_model(tmp_path / 'model.onnx', channels=4, values='file')
    if suffix == '.xml':
        openvino = pytest.importorskip('openvino')
        model = tmp_path / 'model.xml'
        openvino.save_model(openvino.Core().read_model(str(model.with_suffix('.onnx'))), model)
    np.save(tmp_path / 'a.npy', np.full((80, 120, 4), 0.6, np.float32))
    found = run(model, tmp_path / 'a.npy', '--out', tmp_path / 'out.png', '--threshold', 0.59)
    assert '1 objects' in found
    assert cv2.imread(str(tmp_path / 'out.png')).shape == (80, 120, 3)
    # With the channels first, as other programs write arrays.
    np.save(tmp_path / 'b.npy', np.full((4, 80, 120), 153, np.uint8))
    found = run(model, tmp_path / 'b.npy', '--out', tmp_path / 'first.png')
    assert '1 objects' in found
    assert cv2.imread(str(tmp_path / 'first.png')).shape == (80, 120, 3)
    picture(tmp_path / 'b.png', red=153)
    message = run(model, tmp_path / 'b.png', '--out', tmp_path / 'out.png', code=1)
    assert 'the images have 3 channels, and the model takes 4' in message


@pytest.fixture
def video(tmp_path):
    source = tmp_path / 'in.mp4'
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*'mp4v'), 10, (120, 80))
    if not writer.isOpened():
        pytest.skip('this OpenCV writes no videos')
    for _ in range(5):
        writer.write(np.full((80, 120, 3), 200, np.uint8))
    writer.release()
    return source


def test_video(run, model, video, tmp_path):
    printed = run(model, video, '--out', tmp_path / 'out.mp4')
    assert re.search(r'5 frames, [\d.]+ a second\n$', printed)
    read = cv2.VideoCapture(str(tmp_path / 'out.mp4'))
    assert read.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert read.get(cv2.CAP_PROP_FRAME_WIDTH) == 120


def test_what_cannot_be_read_is_named(run, model, tmp_path):
    (tmp_path / 'text.mp4').write_text('no video')
    message = run(model, tmp_path / 'text.mp4', '--out', tmp_path / 'out.mp4', code=2)
    assert 'text.mp4 is no video' in message
    assert 'there is no file' in run(model, tmp_path / 'no.png', '--out', tmp_path / 'o', code=2)


@pytest.mark.parametrize('name', ['weights.pth', 'broken.onnx', 'broken.xml', 'other.onnx'])
def test_other_models_are_refused(run, model, tmp_path, name):
    path = tmp_path / name
    path.write_text('no model')
    if name == 'other.onnx':
        other = onnx.load(model)
        for entry in (*other.graph.input, *other.graph.node):
            if getattr(entry, 'name', '') == 'images':
                entry.name = 'pixels'
            for i, each in enumerate(getattr(entry, 'input', ())):
                if each == 'images':
                    entry.input[i] = 'pixels'
        onnx.save(other, path)
    elif name == 'broken.xml':
        pytest.importorskip('openvino')
    picture(tmp_path / 'a.png', red=153)
    printed = run(path, tmp_path / 'a.png', '--out', tmp_path / 'out.png', code=2)
    assert f'error: {path} is not a model that tools/export.py wrote' in printed
    assert 'Traceback' not in printed
    assert ("its inputs are ['pixels'" in printed) == (name == 'other.onnx')


@pytest.mark.parametrize('out', ['folder/out.mp4', 'out.xyz', 'out'])
def test_a_video_that_cannot_be_written_is_one_error(run, model, video, tmp_path, out):
    printed = run(model, video, '--out', tmp_path / out, code=2)
    assert f'error: could not write {tmp_path / out}' in printed
    assert 'frames' not in printed


@pytest.mark.parametrize('out', ['out', 'out.xyz'])
def test_a_picture_needs_a_suffix_that_opencv_writes(run, model, tmp_path, out):
    picture(tmp_path / 'a.png', red=153)
    printed = run(model, tmp_path / 'a.png', '--out', tmp_path / out, code=2)
    assert f'error: {tmp_path / out}: give it a suffix of a picture' in printed
    assert 'Traceback' not in printed


def test_a_very_long_image_keeps_a_line_of_pixels(load_tool):
    model = SimpleNamespace(shape=(3, 64, 64), metadata=dict(letterbox='', padding='114'))
    image = np.full((2, 2000, 3), 255, np.uint8)
    planes = load_tool('detect.py').to_input(image, model)
    assert (planes[0, :, 0] == 1).all()
    np.testing.assert_allclose(planes[0, :, 1:], 114 / 255)
