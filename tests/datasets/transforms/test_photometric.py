import colorsys

from deim_mmdet.datasets import DenseO2OPhotometricDistort
from deim_mmdet.datasets.transforms import photometric

import numpy as np
import pytest


@pytest.fixture
def img():
    """(12, 11, 3) uint8 BGR: noise, with greys and both ends of the scale among it."""
    img = np.random.default_rng(0).integers(0, 256, (12, 11, 3), dtype=np.uint8)
    img[0] = np.linspace(0, 255, 11)[:, None]
    return img


def grey_of(pixel):
    blue, green, red = (float(value) for value in pixel)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def per_pixel(img, function):
    out = np.array([[function(pixel) for pixel in row] for row in img.astype(float)])
    return np.clip(out, 0, 255)


@pytest.mark.parametrize('factor', [0.875, 1.0, 1.125])
def test_brightness(img, factor):
    expected = per_pixel(img, lambda pixel: factor * pixel)
    assert np.abs(photometric.adjust_brightness(img, factor) - expected).max() <= 0.51


@pytest.mark.parametrize('factor', [0.5, 1.0, 1.5])
def test_contrast_blends_with_the_mean_grey(img, factor):
    mean = np.mean([[grey_of(pixel) for pixel in row] for row in img])
    expected = per_pixel(img, lambda pixel: factor * pixel + (1 - factor) * mean)
    assert np.abs(photometric.adjust_contrast(img, factor) - expected).max() <= 1


@pytest.mark.parametrize('factor', [0.5, 1.0, 1.5])
def test_saturation_blends_with_the_grey_image(img, factor):
    expected = per_pixel(img, lambda pixel: factor * pixel + (1 - factor) * grey_of(pixel))
    assert np.abs(photometric.adjust_saturation(img, factor) - expected).max() <= 1


@pytest.mark.parametrize('turn', [-0.05, 0.0, 0.02, 0.05])
def test_hue_turns_in_hsv(img, turn):
    def turned(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel[::-1] / 255))
        return np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))[::-1] * 255

    # Hue and saturation are held in 8 bits: 1/256 of the circle is 6 levels of a pure colour.
    # The turn is rounded to 1/256 too.
    error = np.abs(photometric.adjust_hue(img, turn) - per_pixel(img, turned))
    assert error.max() <= 9
    assert error.mean() <= 1.6


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_permutation(img, order):
    assert np.array_equal(photometric.permute_channels(img, order), img[..., list(order)])


def test_changes_saturate_at_both_ends(img):
    assert photometric.adjust_brightness(img, 9).max() == 255
    for change in (photometric.adjust_contrast, photometric.adjust_saturation):
        strong = change(img, 9).astype(int)
        assert (strong.min(), strong.max()) == (0, 255)
        # Nothing wraps around: dark pixels stay dark, bright ones bright.
        assert np.corrcoef(strong.ravel(), img.ravel())[0, 1] > 0.6


def test_each_change_has_its_own_coin_and_contrast_two_places(img, monkeypatch):
    calls = []
    for name in ('brightness', 'contrast', 'saturation', 'hue'):

        def record(img, value, name=name):
            calls[-1].append(name)
            low, high = getattr(transform, name)
            assert low <= value <= high
            values[name].append((value - low) / (high - low))
            return img

        monkeypatch.setattr(photometric, f'adjust_{name}', record)
    transform = DenseO2OPhotometricDistort()
    values = {'brightness': [], 'contrast': [], 'saturation': [], 'hue': []}
    np.random.seed(0)
    trials, permuted = 3000, 0
    for _ in range(trials):
        calls.append([])
        out = transform.transform({'img': img})['img']
        permuted += not np.array_equal(out, img)
        assert np.array_equal(np.sort(out, axis=2), np.sort(img, axis=2))

    tolerance = 4 * 0.5 / np.sqrt(trials)
    for drawn in values.values():
        assert len(drawn) / trials == pytest.approx(0.5, abs=tolerance)
        assert np.mean(drawn) == pytest.approx(0.5, abs=0.04)
        assert np.quantile(drawn, [0.05, 0.95]) == pytest.approx([0.05, 0.95], abs=0.03)
    # One permutation of six changes nothing.
    assert permuted / trials == pytest.approx(0.5 * 5 / 6, abs=tolerance)
    # Coins are independent: all four together once in sixteen.
    together = [call for call in calls if len(call) == 4]
    assert len(together) / trials == pytest.approx(1 / 16, abs=tolerance / 2)
    first = [call for call in together if call.index('contrast') == 1]
    assert all(call[0] == 'brightness' for call in together)
    assert all(call[-1] == 'contrast' for call in together if call not in first)
    assert len(first) / len(together) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(together)))


def test_probability_zero_and_one(img):
    same = DenseO2OPhotometricDistort(prob=0).transform({'img': img})['img']
    assert np.array_equal(same, img)
    np.random.seed(0)
    original = img.copy()
    changed = DenseO2OPhotometricDistort(prob=1).transform({'img': img})['img']
    assert not np.array_equal(changed, img)
    assert changed.dtype == np.uint8
    assert np.array_equal(img, original), 'the input image is changed in place'


def test_boxes_stay(make_sample):
    sample = make_sample([[2, 3, 10, 12]], 20, 30)
    results = DenseO2OPhotometricDistort(prob=1).transform(sample)
    assert results['gt_bboxes'].tensor.tolist() == [[2, 3, 10, 12]]


def test_bad_input_is_named(img):
    with pytest.raises(TypeError, match='float32, got float64'):
        DenseO2OPhotometricDistort().transform({'img': img.astype(np.float64)})
    with pytest.raises(TypeError, match=r'\(11,\)'):
        DenseO2OPhotometricDistort().transform({'img': img[0, :, 0]})
    with pytest.raises(ValueError, match=r'prob must be a number in \[0, 1\].*1\.5'):
        DenseO2OPhotometricDistort(prob=1.5)
    with pytest.raises(ValueError, match=r'hue must be a pair.*0\.7'):
        DenseO2OPhotometricDistort(hue=(-0.7, 0.7))
    assert 'saturation=(0.5, 1.5)' in repr(DenseO2OPhotometricDistort())
