from deim_mmdet.datasets import DenseO2OIoUCrop, DenseO2OZoomOut

import numpy as np
import pytest
from scipy import stats


@pytest.fixture
def coordinate_sample(make_sample):
    """Function (boxes, height, width) -> sample whose pixels hold x, y and 1, sides under 256."""

    def make(boxes, height, width):
        img = np.empty((height, width, 3), dtype=np.uint8)
        img[..., 0] = np.arange(width)
        img[..., 1] = np.arange(height)[:, None]
        img[..., 2] = 1
        return make_sample(boxes, height, width, img)

    return make


def random_boxes(rng, height, width, count):
    corner = rng.random((count, 2)) * [width * 0.8, height * 0.8]
    size = rng.uniform(4, 0.6 * min(height, width), (count, 2))
    return np.concatenate([corner, np.minimum(corner + size, [width, height])], axis=1)


def iou(a, b):
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return overlap / (area - overlap)


def has_centre_in(box, window):
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return window[0] < x < window[2] and window[1] < y < window[3]


class TestZoomOut:
    def test_image_and_boxes_lie_at_one_place_of_a_black_canvas(self, coordinate_sample):
        np.random.seed(0)
        factors, places = [], []
        for _ in range(400):
            sample = coordinate_sample([[10, 5, 50, 30], [0, 0, 90, 60]], 60, 90)
            original = sample['img']
            results = DenseO2OZoomOut(prob=1).transform(sample)
            img = results['img']
            height, width = img.shape[:2]
            assert results['img_shape'] == (height, width)
            rows, columns = np.nonzero(img[..., 2])
            left, top = columns.min(), rows.min()
            assert np.array_equal(img[top : top + 60, left : left + 90], original)
            assert img[..., 2].sum() == 60 * 90
            boxes = results['gt_bboxes'].tensor.numpy()
            assert boxes.tolist() == [
                [left + 10, top + 5, left + 50, top + 30],
                [left, top, left + 90, top + 60],
            ]
            # One factor for both sides, each rounded down to whole pixels.
            assert abs(height / 60 - width / 90) < 1 / 60
            factors.append(height / 60)
            if width > 200:
                places.append([left / (width - 90), top / (height - 60)])
        assert stats.kstest(factors, stats.uniform(1, 3).cdf).pvalue > 1e-3
        for coordinate in np.transpose(places):
            assert stats.kstest(coordinate, stats.uniform(0, 1).cdf).pvalue > 1e-3

    def test_probability(self, coordinate_sample):
        np.random.seed(0)
        zoomed = [
            DenseO2OZoomOut(ratio_range=(2, 2)).transform(coordinate_sample([], 6, 9))['img'].shape
            for _ in range(1000)
        ]
        assert np.mean([shape == (12, 18, 3) for shape in zoomed]) == pytest.approx(0.5, abs=0.06)
        assert set(zoomed) == {(12, 18, 3), (6, 9, 3)}

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r'ratio_range must be .*1 <= low.*\(0\.5, 2\)'):
            DenseO2OZoomOut(ratio_range=(0.5, 2))
        with pytest.raises(ValueError, match=r"prob must be a number in \[0, 1\].*'half'"):
            DenseO2OZoomOut(prob='half')
        assert repr(DenseO2OZoomOut()) == 'DenseO2OZoomOut(prob=0.5, ratio_range=(1.0, 4.0))'


class TestIoUCrop:
    @pytest.mark.parametrize('min_iou', [0.0, 0.3, 0.7])
    def test_conditions_of_every_crop(self, coordinate_sample, min_iou):
        rng = np.random.default_rng(1)
        np.random.seed(1)
        transform = DenseO2OIoUCrop(prob=1, min_ious=(min_iou,))
        cropped = 0
        for _ in range(300):
            boxes = random_boxes(rng, 160, 200, 5).astype(np.float32)
            results = transform.transform(coordinate_sample(boxes, 160, 200))
            img = results['img']
            assert results['img_shape'] == img.shape[:2]
            if img.shape[:2] == (160, 200):
                assert len(results['gt_bboxes']) == 5
                continue
            cropped += 1
            window = [img[0, 0, 0], img[0, 0, 1], img[0, -1, 0] + 1, img[-1, 0, 1] + 1]
            window = [int(value) for value in window]
            width, height = window[2] - window[0], window[3] - window[1]
            assert img.shape[:2] == (height, width)
            assert 60 <= width <= 200
            assert 48 <= height <= 160
            assert 0.5 <= width / height <= 2
            inside = [label for label in range(5) if has_centre_in(boxes[label], window)]
            assert inside
            assert max(iou(boxes[label], window) for label in inside) >= min_iou
            assert results['gt_bboxes_labels'].tolist() == inside
            for label, box in zip(inside, results['gt_bboxes'].tensor.tolist(), strict=True):
                expected = boxes[label] - np.array([window[0], window[1]] * 2)
                expected = np.clip(expected, 0, [width, height, width, height])
                assert box == pytest.approx(expected)
        assert cropped > 10

    def test_windows_are_distributed_as_those_of_one_trial_after_another(self, coordinate_sample):
        boxes = np.array([[20, 30, 90, 100], [120, 80, 190, 150], [5, 5, 30, 20]], np.float32)
        options = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)

        def one_after_another(rng, height, width):
            while True:
                option = rng.integers(len(options) + 1)
                if option == len(options):
                    return None
                for _ in range(40):
                    w, h = int(width * rng.uniform(0.3, 1)), int(height * rng.uniform(0.3, 1))
                    if not 0.5 <= w / h <= 2:
                        continue
                    x, y = int((width - w) * rng.random()), int((height - h) * rng.random())
                    window = (x, y, x + w, y + h)
                    inside = [box for box in boxes if has_centre_in(box, window)]
                    if inside and max(iou(box, window) for box in inside) >= options[option]:
                        return window

        rng = np.random.default_rng(2)
        expected = [one_after_another(rng, 160, 200) for _ in range(1500)]
        np.random.seed(2)
        transform = DenseO2OIoUCrop(prob=1)
        drawn = [transform._draw_window(160, 200, boxes) for _ in range(1500)]
        none = [sum(window is None for window in windows) / 1500 for windows in (expected, drawn)]
        assert none[0] == pytest.approx(none[1], abs=4 * np.sqrt(2 * 0.25 / 1500))
        expected = np.array([window for window in expected if window is not None])
        drawn = np.array([window for window in drawn if window is not None])
        for side in range(4):
            assert stats.ks_2samp(expected[:, side], drawn[:, side]).pvalue > 1e-3
        sizes = [windows[:, 2:] - windows[:, :2] for windows in (expected, drawn)]
        for axis in range(2):
            assert stats.ks_2samp(sizes[0][:, axis], sizes[1][:, axis]).pvalue > 1e-3

    def test_probability(self, coordinate_sample):
        # One object over the whole image: every window of the option holds its centre.
        np.random.seed(0)
        transform = DenseO2OIoUCrop(prob=0.8, min_ious=(0.0,), scale_range=(0.9, 0.95))
        cropped = [
            transform.transform(coordinate_sample([[0, 0, 90, 60]], 60, 90))['img'].shape[0] < 60
            for _ in range(1000)
        ]
        # The one option and no crop are at even odds.
        assert np.mean(cropped) == pytest.approx(0.4, abs=4 * np.sqrt(0.24 / 1000))

    def test_image_without_objects_stays(self, coordinate_sample):
        for _ in range(20):
            results = DenseO2OIoUCrop(prob=1).transform(coordinate_sample([], 60, 90))
            assert results['img'].shape == (60, 90, 3)

    def test_ignored_objects_do_not_count_in_the_search(self, coordinate_sample):
        sample = coordinate_sample([[10, 10, 30, 30]], 60, 90)
        sample['gt_ignore_flags'][:] = True
        for _ in range(20):
            assert DenseO2OIoUCrop(prob=1).transform(sample)['img'].shape == (60, 90, 3)

    def test_tiny_image(self, coordinate_sample):
        np.random.seed(0)
        for _ in range(50):
            results = DenseO2OIoUCrop(prob=1).transform(coordinate_sample([[0, 0, 2, 2]], 2, 2))
            assert min(results['img'].shape) >= 1

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r'min_ious must be a number in \[0, 1\].*1\.2'):
            DenseO2OIoUCrop(min_ious=(0.1, 1.2))
        with pytest.raises(ValueError, match=r'scale_range.*\(0\.9, 0\.3\)'):
            DenseO2OIoUCrop(scale_range=(0.9, 0.3))
        with pytest.raises(ValueError, match='trials must be an integer of at least 1, got 0'):
            DenseO2OIoUCrop(trials=0)
        assert 'min_ious=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9)' in repr(DenseO2OIoUCrop())
