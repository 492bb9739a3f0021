from deim_mmdet.datasets import LoadImageChecked, ScaleInstances
from deim_mmdet.datasets.transforms import loading
from deim_mmdet.datasets.transforms.headers import is_truncated, jpeg_shape

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS


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


def with_orientation(data, orientation):
    """A JPEG with an EXIF segment of nothing but its orientation."""
    entry = b'\x12\x01\x03\x00\x01\x00\x00\x00' + bytes([orientation, 0, 0, 0])
    exif = b'Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00' + entry + bytes(4)
    return data[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + data[2:]


def save_wide(path, shape, orientation=1):
    """A smooth JPEG with a bright square, and the square's box in the picture as it is shown."""
    img = np.full((*shape, 3), 60, np.uint8)
    img[40:80, 64:160] = (40, 120, 230)
    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
    data = cv2.imencode('.jpg', cv2.GaussianBlur(img, (0, 0), 3), options)[1].tobytes()
    path.write_bytes(with_orientation(data, orientation))
    box = [64.0, 40, 160, 80]
    if orientation == 6:  # shown turned by a quarter, clockwise
        box = [shape[0] - 80.0, 64, shape[0] - 40, 160]
    return box


def load_needing(path, box, shorter_side, **options):
    sample = {'img_path': str(path), 'instances': [{'bbox': list(box)}]}
    if shorter_side is not None:
        sample['shorter_side'] = shorter_side
    return LoadImageChecked(**options).transform(sample)


@pytest.mark.parametrize(
    ('needed', 'factor'), [(None, 1), (160, 1), (101, 1), (100, 2), (51, 2), (50, 4), (9, 8)]
)
@pytest.mark.parametrize('shape', [(200, 321), (323, 201)])
def test_decodes_no_larger_than_needed(tmp_path, needed, factor, shape):
    path = tmp_path / 'a.jpg'
    box = save_wide(path, shape)
    whole, reduced = load_needing(path, box, None), load_needing(path, box, needed)
    assert jpeg_shape(path.read_bytes()) == shape
    assert reduced['ori_shape'] == whole['ori_shape'] == shape
    assert reduced['img_shape'] == tuple(-(-side // factor) for side in shape)
    assert reduced['img'].shape[:2] == reduced['img_shape']
    assert reduced['instances'][0]['bbox'] == [side / factor for side in box]
    # What a decoder gives is what averaging over squares of pixels gives.
    size = [factor * side for side in reduced['img_shape'][::-1]]
    padded = cv2.copyMakeBorder(
        whole['img'], 0, size[1] - shape[0], 0, size[0] - shape[1], cv2.BORDER_REPLICATE
    )
    expected = cv2.resize(padded, reduced['img_shape'][::-1], interpolation=cv2.INTER_AREA)
    difference = np.abs(reduced['img'].astype(int) - expected)
    assert difference.mean() < 1
    assert difference.max() <= 10


@pytest.mark.parametrize('color_type', ['color', 'color_ignore_orientation'])
@pytest.mark.parametrize('orientation', [1, 6])
def test_reduced_images_are_turned_as_whole_ones(tmp_path, orientation, color_type):
    path = tmp_path / 'a.jpg'
    box = save_wide(path, (200, 321), orientation if color_type == 'color' else 1)
    if color_type != 'color':
        path.write_bytes(with_orientation(path.read_bytes(), orientation))
    whole = load_needing(path, box, None, color_type=color_type)
    reduced = load_needing(path, box, 90, color_type=color_type)
    assert reduced['ori_shape'] == whole['ori_shape']
    assert reduced['img_shape'] == tuple(-(-side // 2) for side in whole['img_shape'])
    for results in (whole, reduced):
        x1, y1, x2, y2 = np.rint(results['instances'][0]['bbox']).astype(int)
        inside = results['img'][y1 + 8 : y2 - 8, x1 + 8 : x2 - 8]
        assert np.abs(inside.astype(int) - (40, 120, 230)).max() < 12


@pytest.mark.parametrize('orientation', [1, 6])
@pytest.mark.parametrize('shape', [(999, 1000), (1000, 999), (1000, 990), (1000, 1000)])
def test_nearly_square_images_keep_their_sides_apart(tmp_path, monkeypatch, shape, orientation):
    messages = []
    monkeypatch.setattr(loading, 'print_log', lambda message, **_: messages.append(message))
    path = tmp_path / 'a.jpg'
    save_wide(path, shape, orientation)
    height, width = shape if orientation == 1 else shape[::-1]
    sample = dict(img_path=str(path), height=height, width=width, shorter_side=240)
    results = LoadImageChecked().transform(sample)
    assert results['ori_shape'] == (height, width)
    assert not messages
    is_reduced = results['img_shape'] != (height, width)
    assert is_reduced == (shape not in [(999, 1000), (1000, 999)])


@pytest.mark.parametrize('needed', [None, 40])
@pytest.mark.parametrize('annotated', [(400, 642), (100, 642), (200, 321)])
@pytest.mark.parametrize('by', ['LoadImageChecked', 'LoadImageFromFile'])
def test_boxes_of_another_annotated_size_fit_the_image(tmp_path, annotated, needed, by):
    """The square in the picture lies where its box, in annotated pixels, says."""
    path = tmp_path / 'a.jpg'
    factors = np.array([annotated[1] / 321, annotated[0] / 200] * 2)
    box = (save_wide(path, (200, 321)) * factors).tolist()
    polygon = [box[0], box[1], box[2], box[1], box[2], box[3]]
    sample = {
        'img_path': str(path),
        'height': annotated[0],
        'width': annotated[1],
        'instances': [{'bbox': box, 'mask': [list(polygon)]}],
    }
    if by == 'LoadImageChecked':
        results = LoadImageChecked().transform({**sample, 'shorter_side': needed or 200})
    else:
        results = ScaleInstances().transform(LoadImageFromFile().transform(sample))
    (instance,) = results['instances']
    x1, y1, x2, y2 = np.rint(instance['bbox']).astype(int)
    inside = results['img'][y1 + 4 : y2 - 4, x1 + 4 : x2 - 4]
    assert np.abs(inside.astype(int) - (40, 120, 230)).max() < 40
    corners = [instance['bbox'][k] for k in (0, 1, 2, 1, 2, 3)]
    assert instance['mask'][0] == pytest.approx(corners)


def test_size_is_warned_of_once_and_turned_images_are_left(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(loading, 'print_log', lambda message, **_: messages.append(message))
    path = tmp_path / 'a.jpg'
    box = save_wide(path, (200, 321))
    loader = LoadImageChecked()
    for size in ((321, 200), (100, 100)):
        sample = {'img_path': str(path), 'instances': [{'bbox': list(box)}]}
        results = loader.transform({**sample, 'height': size[0], 'width': size[1]})
        assert (results['instances'][0]['bbox'] == box) == (size == (321, 200))
    (message,) = messages
    assert f'{path} is 321x200, but 200x321 in the annotation file' in message
    assert 'color_ignore_orientation' in message


def test_masks_that_cannot_be_scaled_are_refused(tmp_path):
    path = tmp_path / 'a.jpg'
    box = save_wide(path, (200, 321))
    mask = {'size': [400, 642], 'counts': b''}
    sample = {'img_path': str(path), 'instances': [{'bbox': box, 'mask': mask}]}
    with pytest.raises(ValueError, match=r'a\.jpg .*run-length encoded.*polygons'):
        LoadImageChecked().transform({**sample, 'height': 400, 'width': 642})


@pytest.mark.parametrize('case', ['png', 'pillow', 'boxes-loaded'])
def test_what_cannot_be_reduced_stays_whole(tmp_path, case):
    suffix = 'png' if case == 'png' else 'jpg'
    path = tmp_path / f'a.{suffix}'
    cv2.imwrite(str(path), np.full((200, 321, 3), 90, np.uint8))
    sample = {'img_path': str(path), 'shorter_side': 20, 'instances': [{'bbox': [0, 0, 9, 9]}]}
    if case == 'boxes-loaded':
        sample['gt_bboxes'] = np.zeros((1, 4), np.float32)
    backend = 'pillow' if case == 'pillow' else 'cv2'
    results = LoadImageChecked(imdecode_backend=backend).transform(sample)
    assert results['img_shape'] == results['ori_shape'] == (200, 321)
    assert results['instances'][0]['bbox'] == [0, 0, 9, 9]


def test_damaged_files_are_named_at_any_size(tmp_path):
    path = tmp_path / 'cut.jpg'
    box = save_wide(path, (200, 321))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r'cut\.jpg is truncated'):
        load_needing(path, box, 20)
    assert jpeg_shape(b'\x89PNG') is None
    assert jpeg_shape(b'\xff\xd8\xff\xe0') is None


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
    with pytest.raises(ValueError, match=r"color_type.*'unchanged'.*got 'colour'"):
        LoadImageChecked(color_type='colour')
