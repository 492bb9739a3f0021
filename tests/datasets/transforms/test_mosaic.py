import cmath
import logging
import math
import tracemalloc

from deim_mmdet.datasets import DenseO2OMosaic
from deim_mmdet.datasets.transforms.mosaic import resize, shape_of_tile, turned_hulls, warp

import cv2
import numpy as np
import pytest
from mmdet.datasets.transforms import Resize
from PIL import Image
from scipy import stats

SIZES = [(60, 90), (80, 50), (64, 64), (40, 100)]
OBJECTS = np.array([[0.1, 0.1, 0.4, 0.5], [0.3, 0.3, 0.9, 0.8], [0.6, 0.0, 1.0, 0.4]])


@pytest.fixture
def four_samples(make_sample):
    """Function (visible=None) -> samples of different sizes with three objects each.

    Labels 0 to 11 in order of the samples; all images but number ``visible`` are black.
    """

    def make(visible=None):
        samples = []
        for number, (height, width) in enumerate(SIZES):
            boxes = np.rint(OBJECTS * [width, height, width, height])
            sample = make_sample(boxes, height, width)
            sample['gt_bboxes_labels'] = sample['gt_bboxes_labels'] + 3 * number
            if visible not in (None, number):
                sample['img'] = np.zeros_like(sample['img'])
            samples.append(sample)
        return {**samples[0], 'mix_results': samples[1:]}

    return make


def test_tiles_lie_at_the_top_left_of_the_quadrants(four_samples):
    transform = DenseO2OMosaic(tile_size=32, rotation=0, translation=0, scale_range=(1, 1))
    inputs = four_samples()
    images = [sample['img'] for sample in (inputs, *inputs['mix_results'])]
    results = transform.transform(inputs)
    # Shorter sides 32: 32 x 48, 51 x 32, 32 x 32, 32 x 80; hence quadrants of 51 x 80.
    shapes = [(32, 48), (51, 32), (32, 32), (32, 80)]
    corners = [(0, 0), (80, 0), (0, 51), (80, 51)]
    img = results['img']
    assert img.shape == (102, 160, 3)
    assert results['img_shape'] == (102, 160)
    expected = np.zeros_like(img)
    boxes = []
    for original, (height, width), (x, y) in zip(images, shapes, corners, strict=True):
        assert shape_of_tile(original, 32) == (height, width)
        resize(original, expected[y : y + height, x : x + width])
        scale = np.array([width / original.shape[1], height / original.shape[0]] * 2)
        whole = np.rint(OBJECTS * ([original.shape[1], original.shape[0]] * 2))
        boxes.extend(whole * scale + [x, y, x, y])
    assert np.array_equal(img, expected)
    assert results['gt_bboxes'].tensor.numpy() == pytest.approx(np.array(boxes), abs=1e-4)
    assert results['gt_bboxes_labels'].tolist() == list(range(12))
    assert len(results['gt_ignore_flags']) == 12


@pytest.mark.parametrize('seed', range(12))
def test_boxes_follow_the_pixels(four_samples, seed):
    # The same seed gives the same geometry; one image at a time is visible.
    for visible in range(4):
        np.random.seed(seed)
        results = DenseO2OMosaic(tile_size=160).transform(four_samples(visible))
        img = results['img']
        height, width = img.shape[:2]
        found = dict(
            zip(results['gt_bboxes_labels'], results['gt_bboxes'].tensor.tolist(), strict=True)
        )
        for channel in range(3):
            rows, columns = np.nonzero(img[..., channel] > 127)
            box = found.get(3 * visible + channel)
            if box is None:
                assert len(rows) == 0 or min(np.ptp(rows), np.ptp(columns)) <= 2
                continue
            if len(rows) == 0:
                # Only a corner of the turned box's hull is on the canvas.
                assert 0 in box or width in box or height in box
                continue
            hull = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if min(box) > 0 and box[2] < width and box[3] < height:
                assert box == pytest.approx(hull, abs=2.5)
            else:
                assert all(box[side] <= hull[side] + 2.5 for side in (0, 1))
                assert all(box[side] >= hull[side] - 2.5 for side in (2, 3))


@pytest.mark.parametrize(('height', 'width'), [(30, 40), (17, 91), (60, 13), (97, 120), (150, 64)])
def test_resize_agrees_with_area_sampling(height, width):
    """On a smooth picture every way of resizing gives about the exact averages."""
    rng = np.random.default_rng(0)
    img = cv2.GaussianBlur(rng.normal(size=(120, 160, 3)), (0, 0), 12)
    img = np.uint8(127 + 100 * img / np.abs(img).max())
    canvas = np.full((height + 5, width + 7, 3), 9, np.uint8)
    resize(img, canvas[2 : 2 + height, 3 : 3 + width])
    expected = np.array(Image.fromarray(img).resize((width, height), Image.BOX), int)
    assert np.abs(canvas[2:-3, 3:-4] - expected).max() <= 8
    assert np.abs(canvas[2:-3, 3:-4] - expected).mean() < 1.2
    canvas[2:-3, 3:-4] = 9
    assert (canvas == 9).all()


def step_by_step(images, tile_size, matrix, scale):
    """The mosaic as published: tiles, canvas, map and resize, each on its own, with Pillow."""
    tiles = []
    for img in images:
        factor = tile_size / min(img.shape[:2])
        size = [int(side * factor + 1e-6) for side in img.shape[1::-1]]
        tiles.append(Image.fromarray(img).resize(size, Image.BILINEAR))
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    canvas = Image.new('RGB', (2 * width, 2 * height))
    for tile, corner in zip(tiles, [(0, 0), (width, 0), (0, height), (width, height)], strict=True):
        canvas.paste(tile, corner)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2].ravel().tolist()
    canvas = canvas.transform(canvas.size, Image.AFFINE, inverse, Image.NEAREST)
    return np.array(canvas.resize(scale, Image.BILINEAR), int)


@pytest.mark.parametrize('seed', range(6))
def test_picture_is_that_of_the_single_steps(make_sample, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    samples = []
    for height, width in [(240, 320), (320, 240), (170, 250), (600, 400)]:
        noise = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), width / 100)
        img = np.uint8(np.clip(128 + 40 * noise / noise.std(), 0, 255))
        samples.append(make_sample([], height, width, img))
    transform = DenseO2OMosaic(tile_size=160, scale=(320, 320))
    np.random.seed(seed)
    # Shapes of the tiles: 160 x 213, 213 x 160, 160 x 235, 240 x 160.
    matrix = transform._draw_affine(480, 470)
    monkeypatch.setattr(transform, '_draw_affine', lambda height, width: matrix)
    results = transform.transform({**samples[0], 'mix_results': samples[1:]})
    assert results['img'].shape == (320, 320, 3)
    assert results['img_shape'] == (320, 320)
    img = results['img'].astype(int)
    expected = step_by_step([sample['img'] for sample in samples], 160, matrix, (320, 320))
    assert np.abs(img - expected).mean() < 6
    assert abs(img.mean() - expected.mean()) < 0.5
    # No other place fits as well: one pixel to any side makes twice the difference.
    for axis in (0, 1):
        for shift in (-1, 1):
            moved = np.abs(np.roll(img, shift, axis) - expected).mean()
            assert moved > 1.5 * np.abs(img - expected).mean()


@pytest.mark.parametrize('seed', range(6))
def test_scale_is_a_resize_behind(four_samples, seed):
    resize_behind = Resize(scale=(150, 120), keep_ratio=False)
    results = []
    for transform in (DenseO2OMosaic(tile_size=64, scale=(150, 120)), DenseO2OMosaic(tile_size=64)):
        np.random.seed(seed)
        results.append(resize_behind(transform.transform(four_samples())))
    ours, theirs = results
    assert ours['img'].shape == theirs['img'].shape == (120, 150, 3)
    assert ours['gt_bboxes'].tensor.numpy() == pytest.approx(
        theirs['gt_bboxes'].tensor.numpy(), abs=1e-3
    )
    assert ours['gt_bboxes_labels'].tolist() == theirs['gt_bboxes_labels'].tolist()
    assert np.abs(ours['img'].astype(int) - theirs['img']).mean() < 12


def test_warp_is_the_affine_map_of_pixel_centres():
    rng = np.random.default_rng(0)
    img = rng.integers(1, 256, (40, 60, 3), dtype=np.uint8)
    np.random.seed(3)
    for _ in range(3):
        matrix = DenseO2OMosaic()._draw_affine(40, 60)
        out = warp(img, matrix, (60, 40))
        inverse = np.linalg.inv(matrix[:, :2])
        wrong = 0
        for row in range(40):
            for column in range(60):
                x, y = inverse @ (np.array([column + 0.5, row + 0.5]) - matrix[:, 2])
                inside = 0 <= x < 60 and 0 <= y < 40
                expected = img[int(y), int(x)] if inside else 0
                wrong += not np.array_equal(out[row, column], np.broadcast_to(expected, 3))
        # Fixed-point arithmetic: a few pixels fall on the other side of a border.
        assert wrong < 0.05 * 40 * 60


def test_warp_does_not_shift_by_half_a_pixel():
    img = np.zeros((40, 40), dtype=np.uint8)
    img[10:30, 10:30] = 255
    doubled = np.array([[2.0, 0, -20], [0, 2, -20]])
    rows, columns = np.nonzero(warp(img, doubled, (40, 40)))
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == [0, 39, 0, 39]
    half = np.array([[0.5, 0, 10], [0, 0.5, 10]])
    rows, columns = np.nonzero(warp(img, half, (40, 40)))
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == [15, 24, 15, 24]


def test_affine_turns_scales_and_shifts_about_the_centre():
    np.random.seed(0)
    transform = DenseO2OMosaic(rotation=10, translation=0.1, scale_range=(0.5, 1.5))
    angles, scales, shifts = [], [], []
    for _ in range(1000):
        matrix = transform._draw_affine(200, 300)
        linear = matrix[:, :2]
        scale = math.sqrt(np.linalg.det(linear))
        assert linear @ linear.T == pytest.approx(np.eye(2) * scale**2, abs=1e-9)
        angles.append(math.degrees(math.atan2(linear[1, 0], linear[0, 0])))
        scales.append(scale)
        shifts.append((linear @ [150, 100] + matrix[:, 2] - [150, 100]) / [300, 200])
    shifts = np.array(shifts)
    for values, low, high in (
        (angles, -10, 10),
        (scales, 0.5, 1.5),
        (shifts[:, 0], -0.1, 0.1),
        (shifts[:, 1], -0.1, 0.1),
    ):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(np.column_stack([angles, scales, shifts]).T) - np.eye(4)).max() < 0.13


def test_hulls_of_turned_corners():
    boxes = np.array([[10.0, 20, 40, 30], [0, 0, 5, 50]])
    turn = cmath.rect(1.3, math.radians(7))
    matrix = np.array([[turn.real, -turn.imag, 3], [turn.imag, turn.real, -4]])
    expected = []
    for x1, y1, x2, y2 in boxes:
        points = [complex(x, y) * turn + complex(3, -4) for x in (x1, x2) for y in (y1, y2)]
        xs, ys = [p.real for p in points], [p.imag for p in points]
        expected.append([min(xs), min(ys), max(xs), max(ys)])
    assert turned_hulls(boxes, matrix) == pytest.approx(np.array(expected))


def test_boxes_are_clipped_and_those_under_one_pixel_dropped(make_sample):
    np.random.seed(0)
    for _ in range(50):
        samples = [make_sample([[0, 0, 2, 50], [5, 5, 45, 45], [48, 48, 60, 60]], 50, 50)] * 4
        results = DenseO2OMosaic(tile_size=40).transform({**samples[0], 'mix_results': samples[1:]})
        boxes = results['gt_bboxes'].tensor.numpy()
        assert len(boxes) == len(results['gt_bboxes_labels']) == len(results['gt_ignore_flags'])
        assert (boxes >= 0).all()
        assert (boxes <= 80).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()


def test_samples_without_objects(make_sample):
    sample = make_sample([], 30, 40)
    results = DenseO2OMosaic(tile_size=16).transform({**sample, 'mix_results': [sample] * 3})
    assert results['gt_bboxes'].tensor.shape == (0, 4)
    assert results['img'].shape == (32, 42, 3)


@pytest.mark.parametrize(
    ('height', 'width', 'tile'),
    [
        (8, 4000, (5, 2560)),
        (10000, 20, (2560, 5)),
        (1, 30000, (1, 2560)),
        (100, 1000, (256, 2560)),
        # Within the bound, the second for its fraction of a pixel.
        (100, 800, (320, 2560)),
        (10000, 80003, (320, 2560)),
        (100, 799, (320, 2556)),
    ],
)
def test_tiles_of_elongated_images_are_bounded(height, width, tile):
    # A view of one pixel has no memory to speak of.
    img = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3))
    assert shape_of_tile(img, 320) == tile


@pytest.fixture
def warnings_of_mosaics(monkeypatch):
    """Messages, each of which must be a warning; as in a process that has said nothing so far."""
    messages = []

    def print_log(message, logger, level):
        assert (logger, level) == ('current', logging.WARNING)
        messages.append(message)

    monkeypatch.setattr('deim_mmdet.datasets.transforms.mosaic.print_log', print_log)
    monkeypatch.setattr(DenseO2OMosaic, '_warned', False)
    return messages


@pytest.mark.parametrize(('height', 'width'), [(8, 4000), (4000, 8)])
def test_memory_of_elongated_images_is_bounded(make_sample, warnings_of_mosaics, height, width):
    # Black but for a quarter of its length, which the object covers.
    box = [width // 4, 0, width // 2, 8] if width > height else [0, height // 4, 8, height // 2]
    samples = [make_sample([box], height, width) for _ in range(4)]
    for number, sample in enumerate(samples):
        sample['img_path'] = f'strip_{number}.png'
    transform = DenseO2OMosaic(tile_size=320, rotation=0, translation=0, scale_range=(1, 1))
    tracemalloc.start()
    results = transform({**samples[0], 'mix_results': samples[1:]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Of the canvas and of the result.
    assert peak < 20e6
    img = results['img']
    assert sorted(img.shape[:2]) == [10, 5120]
    boxes = results['gt_bboxes'].tensor.tolist()
    assert len(boxes) == 4
    mask = np.zeros(img.shape[:2], bool)
    for x1, y1, x2, y2 in np.rint(boxes).astype(int):
        mask[y1:y2, x1:x2] = True
    assert (mask != (img[..., 0] > 127)).mean() < 0.005
    (message,) = warnings_of_mosaics
    assert f'strip_0.png has {width} x {height} pixels' in message
    assert 'Cut such images into pieces' in message


def test_only_the_first_elongated_image_of_a_process_is_named(make_sample, warnings_of_mosaics):
    plain, strip = make_sample([], 30, 40), make_sample([], 4, 60)
    for number in range(3):
        for partner in (plain, {**strip, 'img_path': f'strip_{number}.png'}):
            transform = DenseO2OMosaic(tile_size=16)
            transform.transform({**plain, 'mix_results': [plain, plain, partner]})
    (message,) = warnings_of_mosaics
    assert 'strip_0.png has 60 x 4 pixels' in message


def test_partners_are_drawn_with_replacement():
    np.random.seed(0)
    transform = DenseO2OMosaic()
    drawn = np.array([transform.get_indexes(range(4)) for _ in range(1000)])
    assert drawn.shape == (1000, 3)
    assert stats.chisquare(np.bincount(drawn.ravel(), minlength=4)).pvalue > 1e-3
    assert any(len(set(row)) < 3 for row in drawn.tolist())


def test_cache_gives_two_of_three_partners(make_sample):
    """Once filled, one partner is loaded; the others are recent samples, of which few are kept."""
    np.random.seed(0)
    transform = DenseO2OMosaic(
        tile_size=8, rotation=0, translation=0, scale_range=(1, 1), cache_size=5
    )
    number, seen, drawn = 0, set(), []
    for _ in range(40):
        samples = []
        for _ in range(1 + len(transform.get_indexes(range(100)))):
            sample = make_sample([[1, 1, 7, 7]], 8, 8)
            sample['gt_bboxes_labels'] = np.array([number])
            samples.append(sample)
            number += 1
        results = transform({**samples[0], 'mix_results': samples[1:]})
        labels = results['gt_bboxes_labels'].tolist()
        new = [int(sample['gt_bboxes_labels'][0]) for sample in samples]
        assert len(labels) == 4
        assert set(new) <= set(labels)
        assert set(labels) - set(new) <= seen
        drawn += [label for label in labels if label not in new]
        seen |= set(new)
        assert len(transform._cache) <= 5
    assert number == 4 + 39 * 2
    assert len(drawn) == 39 * 2
    assert len(set(drawn)) > 20


def test_bad_input_is_named(make_sample):
    sample = make_sample([], 30, 40)
    with pytest.raises(ValueError, match=r'needs 3 other samples.*got 0: wrap the dataset'):
        DenseO2OMosaic().transform(sample)
    with pytest.raises(ValueError, match='tile_size must be an integer of at least 1, got 0'):
        DenseO2OMosaic(tile_size=0)
    with pytest.raises(ValueError, match='cache_size must be an integer of at least 1, got 0'):
        DenseO2OMosaic(cache_size=0)
    with pytest.raises(ValueError, match=r'translation must be a number in \[0, 1\], got 10'):
        DenseO2OMosaic(translation=10)
    with pytest.raises(ValueError, match=r'scale_range.*got \(0, 1\)'):
        DenseO2OMosaic(scale_range=(0, 1))
    with pytest.raises(ValueError, match='scale must be an integer of at least 1, got 0'):
        DenseO2OMosaic(scale=(640, 0))
    assert 'tile_size=320, rotation=10.0, translation=0.1' in repr(DenseO2OMosaic())
