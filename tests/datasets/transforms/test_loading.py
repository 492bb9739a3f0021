import cv2
import numpy as np
import pytest
from mmdet.registry import TRANSFORMS

from deim_mmdet.datasets import LoadImageChecked
from deim_mmdet.datasets.transforms.loading import is_truncated


@pytest.fixture
def photo():
    gradient = np.linspace(0, 255, 90, dtype=np.uint8)
    return np.stack([np.tile(gradient, (60, 1)), np.full((60, 90), 80, np.uint8)] * 2, -1)[..., :3]


def load(path):
    return LoadImageChecked().transform({'img_path': str(path)})


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'bmp', 'webp'])
def test_reads_good_files_in_bgr(tmp_path, photo, suffix):
    path = tmp_path / f'photo.{suffix}'
    cv2.imwrite(str(path), photo)
    results = load(path)
    assert results['img'].dtype == np.uint8
    assert results['img_shape'] == results['ori_shape'] == (60, 90)
    assert np.abs(results['img'].astype(int) - photo).mean() < 8


@pytest.mark.parametrize(
    ('stored', 'expected'),
    [
        (np.full((8, 9), 100, np.uint8), (100, 100, 100)),
        (np.full((8, 9, 4), (10, 20, 30, 0), np.uint8), (10, 20, 30)),
        (np.full((8, 9, 3), 51200, np.uint16), (200, 200, 200)),
        (np.full((8, 9), 51200, np.uint16), (200, 200, 200)),
    ],
    ids=['grey', 'rgba', '16-bit', '16-bit-grey'],
)
def test_other_pixel_formats_become_three_uint8_channels(tmp_path, stored, expected):
    cv2.imwrite(str(tmp_path / 'a.png'), stored)
    img = load(tmp_path / 'a.png')['img']
    assert img.shape == (8, 9, 3)
    assert img.dtype == np.uint8
    assert (img == expected).all()


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize('share', [0.3, 0.6, 0.99])
def test_truncated_file_is_named(tmp_path, photo, suffix, share):
    path = tmp_path / f'cut.{suffix}'
    data = cv2.imencode(f'.{suffix}', photo)[1].tobytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r'cut\.(jpg|png) is truncated.*[Rr]emove the image'):
        load(path)


def test_end_marker_of_an_embedded_thumbnail_does_not_count(photo):
    data = cv2.imencode('.jpg', photo)[1].tobytes()
    thumbnail = cv2.imencode('.jpg', photo[:16, :16])[1].tobytes()
    segment = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    whole = data[:2] + segment + data[2:]
    assert not is_truncated(whole)
    for length in range(2, len(whole) - 1):
        assert is_truncated(whole[:length])


def test_bytes_behind_the_end_are_no_truncation(tmp_path, photo):
    for suffix in ('jpg', 'png'):
        path = tmp_path / f'more.{suffix}'
        path.write_bytes(cv2.imencode(f'.{suffix}', photo)[1].tobytes() + b'\x00trailer' * 9)
        assert load(path)['img'].shape == (60, 90, 3)


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone\.jpg.*data_root'):
        load(tmp_path / 'gone.jpg')
    with pytest.raises(FileNotFoundError, match='Cannot open image'):
        load(tmp_path)
    (tmp_path / 'empty.jpg').touch()
    with pytest.raises(ValueError, match=r'empty\.jpg is empty \(0 bytes\)'):
        load(tmp_path / 'empty.jpg')
    (tmp_path / 'page.jpg').write_text('<html>404</html>')
    with pytest.raises(ValueError, match=r'page\.jpg cannot be decoded'):
        load(tmp_path / 'page.jpg')


def test_is_registered_and_refuses_other_colour_types():
    assert isinstance(TRANSFORMS.build({'type': 'LoadImageChecked'}), LoadImageChecked)
    assert 'color' in repr(LoadImageChecked())
    with pytest.raises(ValueError, match=r"color_type.*'unchanged'"):
        LoadImageChecked(color_type='unchanged')
