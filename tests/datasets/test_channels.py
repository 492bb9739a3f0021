"""Images of any number of channels, of 8 and 16 bits, from the file to the batch."""

from pathlib import Path

from deim_mmdet.data_checks.images import ImageTask, inspect_image
from deim_mmdet.datasets import DenseO2OPhotometricDistort, LoadImageChecked
from deim_mmdet.datasets.pictures import read_picture
from deim_mmdet.datasets.transforms import photometric
from deim_mmdet.engine import set_input_channels
from deim_mmdet.engine.config import load_config
from deim_mmdet.utils.components import find_components

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes

CONFIGS = Path(__file__).parents[2] / 'configs'
every_kind = pytest.mark.parametrize(
    ('channels', 'dtype'),
    [(1, np.uint8), (4, np.uint8), (1, np.uint16), (3, np.uint16), (6, np.uint16), (6, np.float32)],
)


def noise(channels, dtype, size=(20, 30)):
    top = 256 if dtype == np.uint8 else 65536
    return np.random.default_rng(0).integers(top, size=(*size, channels)).astype(dtype)


def load(path, **options):
    results = LoadImageChecked('unchanged', **options).transform({'img_path': str(path)})
    assert results['img_shape'] == results['img'].shape[:2]
    return results['img']


@every_kind
def test_arrays_of_both_layouts(tmp_path, channels, dtype):
    expected = noise(channels, dtype)
    for name, array in dict(last=expected, first=expected.transpose(2, 0, 1)).items():
        np.save(tmp_path / f'{name}.npy', array)
        found = load(tmp_path / f'{name}.npy', channels=channels)
        assert found.dtype == dtype
        assert np.array_equal(found, expected)
    np.save(tmp_path / 'big_endian.npy', expected.astype(expected.dtype.newbyteorder('>')))
    assert np.array_equal(load(tmp_path / 'big_endian.npy'), expected)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_pages_of_a_tiff_are_channels(tmp_path, dtype):
    expected = noise(5, dtype)
    path = tmp_path / 'pages.tiff'
    assert cv2.imwritemulti(str(path), [*np.ascontiguousarray(expected.transpose(2, 0, 1))])
    found = load(path)
    assert found.dtype == dtype
    assert np.array_equal(found, expected)
    assert read_picture(str(path)).shape == (20, 30, 3)


@pytest.mark.parametrize('suffix', ['png', 'tiff'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_pictures_of_16_bits_keep_them(tmp_path, suffix, channels):
    stored = noise(channels, np.uint16)
    cv2.imwrite(str(tmp_path / f'a.{suffix}'), stored)
    # OpenCV writes and reads BGR(A): four channels come in the order of the file.
    expected = stored[..., [2, 1, 0, 3]] if channels == 4 else stored
    assert np.array_equal(load(tmp_path / f'a.{suffix}'), expected)


@pytest.mark.parametrize('suffix', ['png', 'tiff'])
@pytest.mark.parametrize('channels', [1, 3])
def test_pictures_of_few_bits_are_not_black(tmp_path, suffix, channels):
    path = str(tmp_path / f'a.{suffix}')
    cv2.imwrite(path, noise(channels, np.uint8).astype(np.uint16))
    picture = read_picture(path)
    assert picture.dtype == np.uint8
    assert picture.shape == (20, 30, 3)
    assert (picture.min(), picture.max()) == (0, 255)


def test_pictures_of_8_bits_are_shown_as_they_are(tmp_path):
    stored = noise(3, np.uint8) // 4
    cv2.imwrite(str(tmp_path / 'a.png'), stored)
    assert np.array_equal(read_picture(str(tmp_path / 'a.png')), stored)
    pages = [noise(3, np.uint8), noise(3, np.uint8, size=(10, 15))]
    cv2.imwritemulti(str(tmp_path / 'a.tiff'), pages)
    assert np.array_equal(read_picture(str(tmp_path / 'a.tiff')), pages[0])


def test_grey_pictures_have_one_channel(tmp_path):
    stored = noise(1, np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), stored)
    found = LoadImageChecked('grayscale', channels=1).transform(
        {'img_path': str(tmp_path / 'a.png'), 'shorter_side': 4}
    )
    assert np.array_equal(found['img'], stored)


@pytest.mark.parametrize('wrong', [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_named(tmp_path, wrong):
    array = noise(6, np.float32)
    array[3, 4, 5] = array[0, 0, 0] = wrong
    path = tmp_path / 'a.npy'
    np.save(path, array)
    with pytest.raises(ValueError, match=r'a\.npy cannot be decoded \(2 of 3600 numbers are NaN'):
        load(path)
    task = ImageTask(str(path), 'a.npy', (30, 20))
    [finding] = inspect_image(task, LoadImageChecked('unchanged'))
    assert (finding.problem, finding.breaks) == ('image_unreadable', True)
    assert 'numbers are NaN' in finding.says


def test_what_is_no_image_or_has_other_channels_is_named(tmp_path):
    np.save(tmp_path / 'a.npy', np.zeros((4, 5, 6, 7)))
    with pytest.raises(ValueError, match=r'a\.npy cannot be decoded.*shape \(4, 5, 6, 7\)'):
        load(tmp_path / 'a.npy')
    np.save(tmp_path / 'b.npy', np.zeros((9, 5, 6)))
    with pytest.raises(ValueError, match=r'b\.npy has 6 channels, and the model takes 4 .*in_chan'):
        load(tmp_path / 'b.npy', channels=4)
    (tmp_path / 'd.tif').write_bytes(b'II*\0' + bytes(20))
    with pytest.raises(ValueError, match=r"d\.tif cannot be decoded .*'tifffile'"):
        load(tmp_path / 'd.tif')
    pages = [np.zeros((4, 5), np.uint8), np.zeros((4, 6), np.uint8)]
    cv2.imwritemulti(str(tmp_path / 'c.tiff'), pages)
    with pytest.raises(ValueError, match=r'c\.tiff cannot be decoded \(pages of several sizes'):
        load(tmp_path / 'c.tiff')


@every_kind
def test_brightness_and_contrast_of_any_channels(channels, dtype):
    img = noise(channels, dtype)
    top = np.inf if dtype == np.float32 else np.iinfo(dtype).max
    exact = img.astype(float)
    found = photometric.adjust_brightness(img, 1.125).reshape(img.shape)
    assert found.dtype == dtype
    assert np.abs(found - np.clip(1.125 * exact, 0, top)).max() <= 0.51
    mean = exact.mean((0, 1))
    if channels == 3:
        mean = (exact @ [0.114, 0.587, 0.299]).mean()
    found = photometric.adjust_contrast(img, 1.5).reshape(img.shape)
    low = 0 if dtype != np.float32 else -np.inf
    assert np.abs(found - np.clip(1.5 * exact - 0.5 * mean, low, top)).max() <= 0.51


def test_hue_of_16_bits_turns_as_that_of_8():
    few = noise(3, np.uint8)
    expected = photometric.adjust_hue(few, 0.05).astype(float)
    found = photometric.adjust_hue(few.astype(np.uint16) * 257, 0.05) / 257
    # Eight bits hold hue and saturation coarsely.
    assert np.abs(found - expected).max() <= 9
    assert np.abs(found - expected).mean() <= 1.6


@pytest.mark.parametrize('channels', [1, 4])
def test_hue_saturation_and_order_are_for_three_channels(channels, monkeypatch):
    for name in ('adjust_saturation', 'adjust_hue', 'permute_channels'):
        monkeypatch.setattr(photometric, name, None)
    img = noise(channels, np.uint8)
    changed = DenseO2OPhotometricDistort(prob=1).transform({'img': img})['img']
    assert changed.shape == img.shape
    assert not np.array_equal(changed, img)


@every_kind
def test_every_channel_takes_the_same_way_through_dense_o2o(tmp_path, channels, dtype):
    """Geometry is alike in all channels: each comes out as it does alone, and boxes too."""
    cfg = load_config(CONFIGS / 'own_data' / 'multispectral.py', dict(image_size=64))
    set_input_channels(cfg, [0] * channels, [1] * channels)
    (dense_o2o, *rest) = cfg.train_dataloader.dataset.pipeline
    stored = noise(channels, dtype, (48, 56))
    outputs = []
    for name, array in dict(all=stored, last=stored[..., -1:]).items():
        np.save(tmp_path / f'{name}.npy', array)
        load_here = [dict(type='LoadImageChecked', color_type='unchanged')]
        parts = {
            key: [t for t in dense_o2o[key] if t.type != 'DenseO2OPhotometricDistort']
            for key in ('mosaic', 'single')
        }
        letterbox = dict(type='Letterbox', scale=(96, 64))
        pipeline = [
            TRANSFORMS.build(dict(dense_o2o, load=load_here, mosaic_prob=1.0, **parts)),
            *(TRANSFORMS.build(t) for t in [*rest[:-1], letterbox, rest[-1]]),
        ]
        own = []
        for seed in range(6):
            np.random.seed(seed)
            sample = dict(img_path=str(tmp_path / f'{name}.npy'), img_id=0)
            sample['gt_bboxes'] = HorizontalBoxes(torch.tensor([[5.0, 6, 40, 30]]))
            sample['gt_bboxes_labels'] = np.zeros(1, int)
            sample['gt_ignore_flags'] = np.zeros(1, bool)
            if seed % 2:
                sample['mix_results'] = [dict(sample) for _ in range(3)]
            else:
                pipeline[0].mosaic_prob = 0.0
            for transform in pipeline:
                sample = transform(sample)
            pipeline[0].mosaic_prob = 1.0
            assert sample['inputs'].shape == (array.shape[-1], 64, 96)
            own.append(sample['inputs'].numpy())
        outputs.append(own)
    for whole, last in zip(*outputs, strict=True):
        assert whole.dtype == dtype
        # For some numbers of channels OpenCV rounds otherwise, also to the nearest pixel.
        assert (np.abs(whole[-1:].astype(float) - last) > 2).mean() < 0.01
        assert whole.max() > (200 if dtype == np.uint8 else 50000)


def test_a_detector_of_other_channels_than_its_preprocessor_is_refused():
    cfg = load_config(CONFIGS / 'own_data' / 'grey.py')
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r'have 3 channels, and mean and std .* have 1'):
        model.data_preprocessor({'inputs': image, 'data_samples': None})
    cfg.model.data_preprocessor.update(mean=[0] * 4, std=[1] * 4)
    with pytest.raises(ValueError, match=r'in_channels is 1, and mean and std .* for 4 channels'):
        MODELS.build(cfg.model)


def test_every_loader_ignores_orientations_where_that_is_asked_for():
    cfg = load_config(CONFIGS / 'deim_dfine_custom.py')
    set_input_channels(cfg, [0] * 3, [1] * 3, 'unchanged_ignore_orientation')
    loaders = find_components(TRANSFORMS, [*cfg.values()], LoadImageFromFile)
    assert {(loader['type'], loader['color_type']) for loader in loaders} == {
        ('LoadImageChecked', 'unchanged_ignore_orientation')
    }
    assert cfg.model.data_preprocessor.keep_values


def test_wrong_numbers_for_set_input_channels():
    cfg = load_config(CONFIGS / 'deim_dfine_custom.py')
    with pytest.raises(ValueError, match='a number for each channel'):
        set_input_channels(cfg, [0] * 4, [1])
    with pytest.raises(ValueError, match="color_type='grayscale' does not read 4 channels"):
        set_input_channels(cfg, [0] * 4, [1] * 4, 'grayscale')
