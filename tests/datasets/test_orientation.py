"""Pictures of 16 bits with an EXIF orientation are read as their twins of 8 bits."""

import io
import re

from deim_mmdet.data_checks.images import ImageTask, inspect_image
from deim_mmdet.datasets import LoadImageChecked
from deim_mmdet.datasets.pictures import read_picture
from deim_mmdet.datasets.transforms import loading
from deim_mmdet.datasets.transforms.headers import orientations

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from oriented import ORIENTATION, WRITERS, oriented_png
from PIL import Image, ImageOps

every_file = pytest.mark.parametrize(
    ('suffix', 'channels'), [('png', 1), ('png', 3), ('png', 4), ('tiff', 1), ('tiff', 3)]
)


def noise(channels):
    """Pixels of 8 bits, (5, 7) or (5, 7, C)."""
    return np.random.default_rng(0).integers(256, size=(5, 7, channels), dtype=np.uint8).squeeze()


def in_16_bits(img):
    """Pixels whose upper 8 bits are those of ``img``, and whose lower ones differ from them."""
    return img.astype(np.uint16) * 256 + (255 - img)


def write_twins(folder, suffix, channels, orientation):
    """A picture in 8 and in 16 bits, and how Pillow shows that of 8: BGR(A), (H, W, C)."""
    paths = [folder / f'{bits}.{suffix}' for bits in (8, 16)]
    img = noise(channels)
    for path, pixels in zip(paths, (img, in_16_bits(img)), strict=True):
        path.write_bytes(WRITERS[suffix](pixels, orientation))
    file = io.BytesIO(paths[0].read_bytes())
    shown = np.atleast_3d(np.asarray(ImageOps.exif_transpose(Image.open(file))))
    return *paths, shown[..., [[0], [2, 1, 0], [2, 1, 0, 3]][channels // 2]]


def load(path, color_type, loader=LoadImageChecked):
    results = loader(color_type=color_type).transform({'img_path': str(path)})
    assert results['img_shape'] == results['img'].shape[:2]
    return results['img']


def assert_close(found, expected):
    """Three channels of 8 bits as expected; OpenCV rounds 16 bits, or takes the upper 8."""
    assert (found.shape, found.dtype) == ((*expected.shape[:2], 3), np.uint8)
    np.testing.assert_allclose(found.astype(int), expected + np.zeros(3), atol=1)


@every_file
@pytest.mark.parametrize('orientation', range(1, 9))
def test_they_are_turned_as_their_twins(tmp_path, suffix, channels, orientation):
    path_8, path_16, shown = write_twins(tmp_path, suffix, channels, orientation)
    assert shown.shape[:2] == ((7, 5) if orientation > 4 else (5, 7))
    for loader in (LoadImageChecked, LoadImageFromFile):
        for path in (path_8, path_16):
            assert_close(load(path, 'color', loader), shown[..., :3])
    # Four channels come in the order of the file.
    expected = shown[..., [2, 1, 0, 3]] if channels == 4 else shown
    assert np.array_equal(load(path_8, 'unchanged'), expected)
    found = load(path_16, 'unchanged')
    assert found.flags.c_contiguous
    assert np.array_equal(found, in_16_bits(expected))
    assert read_picture(str(path_16)).shape == read_picture(str(path_8)).shape


@every_file
@pytest.mark.parametrize('orientation', range(1, 9))
def test_they_stay_as_stored_where_that_is_asked_for(tmp_path, suffix, channels, orientation):
    path_8, path_16, _ = write_twins(tmp_path, suffix, channels, orientation)
    stored = np.atleast_3d(noise(channels))
    for path in (path_8, path_16):
        found = load(path, 'color_ignore_orientation')
        assert found.flags.c_contiguous
        assert_close(found, stored[..., :3])
    expected = stored[..., [2, 1, 0, 3]] if channels == 4 else stored
    assert np.array_equal(load(path_8, 'unchanged_ignore_orientation'), expected)
    assert np.array_equal(load(path_16, 'unchanged_ignore_orientation'), in_16_bits(expected))


@pytest.mark.parametrize('suffix', ['png', 'tiff'])
@pytest.mark.parametrize('turn', ['', '_ignore_orientation'])
def test_pillow_reads_the_same(tmp_path, suffix, turn):
    _, path, _ = write_twins(tmp_path, suffix, 1, 6)
    loader = LoadImageChecked(f'unchanged{turn}', imdecode_backend='pillow')
    found = loader.transform({'img_path': str(path)})['img']
    assert np.array_equal(found, load(path, f'unchanged{turn}'))


@pytest.mark.parametrize('big_tiff', [False, True])
def test_pages_are_turned_each(tmp_path, big_tiff):
    pages = [in_16_bits(noise(1)), in_16_bits(255 - noise(1))]
    first, second = map(Image.fromarray, pages)
    path = tmp_path / 'pages.tiff'
    options = dict(save_all=True, append_images=[second], tiffinfo={ORIENTATION: 8})
    first.save(path, big_tiff=big_tiff, **options)
    assert orientations(path.read_bytes()) == [8, 8]
    stored = np.dstack(pages)
    assert np.array_equal(load(path, 'unchanged'), np.rot90(stored))
    assert np.array_equal(load(path, 'unchanged_ignore_orientation'), stored)


@pytest.mark.parametrize('color_type', ['color', 'unchanged'])
def test_the_orientation_of_a_png_may_lie_behind_the_pixels(tmp_path, color_type):
    (tmp_path / 'a.png').write_bytes(oriented_png(noise(3), 6, behind_pixels=True))
    expected = np.rot90(noise(3), -1)
    assert np.array_equal(load(tmp_path / 'a.png', color_type), expected)


def test_what_is_no_orientation_leaves_a_picture_as_stored(tmp_path):
    img = in_16_bits(noise(3))
    for number in (0, 9, 1000):
        (tmp_path / 'a.png').write_bytes(oriented_png(img, number))
        assert np.array_equal(load(tmp_path / 'a.png', 'unchanged'), img)
    whole = oriented_png(img, 6)
    assert orientations(whole) == [6]
    assert orientations(whole.replace(b'MM\0*', b'????')) == [1]
    for data in (b'', b'\x89PNG\r\n\x1a\n', b'II*\0', b'MM\0+' + bytes(20), b'BM'):
        assert orientations(data) == [1]
    # A directory of pages that goes round.
    file = io.BytesIO()
    Image.fromarray(noise(1)).save(file, 'TIFF', tiffinfo={ORIENTATION: 3})
    data = bytearray(file.getvalue())
    at = int.from_bytes(data[4:8], 'little')
    after = at + 2 + 12 * int.from_bytes(data[at : at + 2], 'little')
    data[after : after + 4] = data[4:8]
    assert orientations(bytes(data)) == [3]


CHECKED = [
    # Loader and color_type, orientation, whether annotated as stored, and the finding.
    (LoadImageChecked, 'color', 6, False, 'exif_turned'),
    (LoadImageChecked, 'color', 6, True, 'exif_not_annotated'),
    (LoadImageChecked, 'color', 3, True, 'exif_turned'),
    (LoadImageChecked, 'color', 1, True, None),
    (LoadImageChecked, 'color_ignore_orientation', 6, True, None),
    (LoadImageChecked, 'color_ignore_orientation', 6, False, 'size_differs'),
    (LoadImageChecked, 'unchanged', 6, False, 'exif_turned'),
    (LoadImageChecked, 'unchanged', 6, True, 'exif_not_annotated'),
    (LoadImageChecked, 'unchanged', 3, True, 'exif_turned'),
    (LoadImageChecked, 'unchanged_ignore_orientation', 6, True, None),
    (LoadImageChecked, 'unchanged_ignore_orientation', 3, True, None),
    (LoadImageFromFile, 'color', 6, True, 'exif_not_annotated'),
    # mmcv turns these only where they are TIFFs.
    (LoadImageFromFile, 'color_ignore_orientation', 3, True, {'tiff': 'exif_turned'}),
    (LoadImageFromFile, 'color_ignore_orientation', 6, True, {'tiff': 'exif_not_annotated'}),
    (LoadImageFromFile, 'unchanged', 6, True, {'tiff': 'exif_not_annotated'}),
]


@pytest.mark.parametrize('suffix', ['png', 'tiff'])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(('loader', 'color_type', 'orientation', 'as_stored', 'expected'), CHECKED)
def test_the_check_of_data_says_what_the_loader_does(
    tmp_path, suffix, channels, loader, color_type, orientation, as_stored, expected
):
    if isinstance(expected, dict):
        expected = expected.get(suffix)
    *paths, _ = write_twins(tmp_path, suffix, channels, orientation)
    for path in paths:
        task = ImageTask(str(path), path.name, (7, 5) if as_stored else (5, 7))
        findings = inspect_image(task, loader(color_type=color_type))
        kinds = {finding.problem for finding in findings} - {'deep', 'greyscale'}
        assert kinds == ({expected} if expected else set())


@pytest.mark.parametrize(
    ('color_type', 'annotated', 'advice'),
    [
        ('color', (5, 7), "without.*'color_ignore_orientation' reads"),
        ('unchanged', (5, 7), "without.*'unchanged_ignore_orientation' reads"),
        ('unchanged_ignore_orientation', (7, 5), "with its.*'unchanged' reads"),
    ],
)
def test_the_warning_names_what_reads_them_as_annotated(
    tmp_path, monkeypatch, color_type, annotated, advice
):
    messages = []
    monkeypatch.setattr(loading, 'print_log', lambda message, **_: messages.append(message))
    _, path, _ = write_twins(tmp_path, 'tiff', 1, 6)
    sample = dict(img_path=str(path), height=annotated[0], width=annotated[1])
    sample['instances'] = [dict(bbox=[1, 2, 3, 4])]
    found = LoadImageChecked(color_type).transform(sample)
    assert found['instances'] == [dict(bbox=[1, 2, 3, 4])]
    [message] = messages
    assert str(path) in message
    assert re.search(advice, message)
