"""Mutated image files give an image or one clear error; no decoder takes the process down."""

import io
import itertools
import os
import random
import resource
import struct
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from deim_mmdet.data_checks.images import ImageTask, inspect_image
from deim_mmdet.datasets import LoadImageChecked
from deim_mmdet.datasets.transforms.headers import MAX_PIXELS
from deim_mmdet.datasets.transforms.loading import UnreadableImageError

import cv2
import numpy as np
import pytest
from fuzzing import fuzz_count
from messy_data import huge_png, with_jpeg_size
from PIL import Image

pytestmark = pytest.mark.slow

# On the clock, hence long enough for a machine that does other things too.
TIMEOUT = 300
FILES = fuzz_count(usual=100, full=2_000)
HEIGHT, WIDTH = 120, 161
BOX = [16.0, 24.0, 80.0, 96.0]
EXTREMES = [
    0,
    1,
    2,
    3,
    255,
    256,
    2**14,
    2**15,
    2**16 - 1,
    2**16,
    2**20,
    2**31 - 1,
    2**31,
    2**32 - 1,
]
SIZES = [(1, 1), (0, 0), (0, 50), (65535, 65535), (65535, 1), (20000, 20000), (9000, 9000)]


def base_images() -> list[bytes]:
    """One image in each of many formats and kinds of pixels."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    noise = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH, 3))
    smooth = np.stack([rows, columns, rows + columns], -1) * 200 // (HEIGHT + WIDTH)
    photo = (smooth + noise).astype(np.uint8)
    grey, deep = photo[..., 0].copy(), photo.astype(np.uint16) * 257
    encoded = [
        cv2.imencode(suffix, img, options)[1].tobytes()
        for suffix, img, options in (
            ('.jpg', photo, []),
            ('.jpg', photo, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
            ('.jpg', photo, [cv2.IMWRITE_JPEG_RST_INTERVAL, 4]),
            ('.jpg', grey, []),
            ('.png', photo, []),
            ('.png', deep, []),
            ('.png', np.dstack([photo, grey]), []),
            ('.bmp', photo, []),
            ('.bmp', grey, []),
            ('.webp', photo, []),
            ('.webp', np.dstack([photo, grey]), [cv2.IMWRITE_WEBP_QUALITY, 101]),
            ('.tif', photo, []),
            ('.tif', deep, []),
        )
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(photo)
    for mode, form, options in (
        ('RGB', 'JPEG', dict(exif=exif)),
        ('CMYK', 'JPEG', {}),
        ('P', 'PNG', {}),
        ('1', 'PNG', {}),
        ('P', 'GIF', {}),
        ('RGB', 'TIFF', dict(compression='tiff_lzw')),
        ('L', 'TIFF', dict(compression='tiff_deflate')),
        ('1', 'TIFF', dict(compression='group4')),
    ):
        file = io.BytesIO()
        image.convert(mode).save(file, form, **options)
        encoded.append(file.getvalue())
    return encoded


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One change to an encoded image."""
    kind = rng.randrange(9)
    at = rng.randrange(len(data) + 1)
    head = rng.randrange(min(len(data), 64) + 1)
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(rng.choice([1, 1, 3, 20]) if data else 0):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 2:
        return data[:head] + rng.randbytes(rng.randint(1, 8)) + data[head + 1 :]
    if kind == 3:
        form = rng.choice(['>H', '<H', '>I', '<I'])
        value = struct.pack(form, rng.choice(EXTREMES) % 256 ** struct.calcsize(form))
        return data[:head] + value + data[head + len(value) :]
    if kind == 4:
        end = min(len(data), at + rng.randint(1, 200))
        return data[:at] + rng.choice([b'', bytes(end - at), data[at:end] * 2]) + data[end:]
    if kind == 5:
        other = rng.choice(others)
        return data[:at] + other[rng.randrange(len(other)) :]
    if kind == 6:
        return (
            rng.choice([b'\xff\xd8', b'\x89PNG\r\n\x1a\n', b'BM', b'RIFF', b'\0' * 9, b'II*\0'])
            + data
        )
    width, height = rng.choice(SIZES)
    if data.startswith(b'\x89PNG'):
        return rng.choice(
            [data[:16] + struct.pack('>II', width, height) + data[24:], huge_png(width, height)]
        )
    if b'\xff\xc0' in data:
        return with_jpeg_size(data, width, height)
    if data.startswith(b'BM'):
        return data[:18] + struct.pack('<ii', width, rng.choice([height, -height])) + data[26:]
    return data


def mutated_image(seed: int, images: list[bytes]) -> bytes:
    rng = random.Random(seed)
    data = images[seed % len(images)]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = mutate(rng, data, images)
    return data


def start() -> None:
    """In a process that decodes: quiet, on one core, and with bounded memory."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    cv2.setNumThreads(0)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')
    # Twice an image of the largest size that is decoded, at 16 bits a channel.
    limit = used + 2 * 6 * MAX_PIXELS
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def read(path: str, shorter_side: int | None) -> str:
    """What became of a file: 'read', or the error; asserts what must hold."""
    sample = dict(img_path=path, instances=[dict(bbox=list(BOX))])
    if shorter_side is not None:
        sample['shorter_side'] = shorter_side
    try:
        results = LoadImageChecked().transform(sample)
    except ValueError as error:
        refusal = error
    else:
        img = results['img']
        assert img.dtype == np.uint8
        assert img.shape == (*results['img_shape'], 3)
        assert 0 < img.shape[0] * img.shape[1] <= MAX_PIXELS
        # The box stays at the same place of the image, whatever size it is decoded at.
        whole, read = results['ori_shape'], results['img_shape']
        factor = round(max(full / side for full, side in zip(whole, read, strict=True)))
        assert read == tuple(-(-side // factor) for side in whole)
        assert factor == 1 or min(whole) >= factor * shorter_side
        assert results['instances'][0]['bbox'] == [value / factor for value in BOX]
        return 'read'
    assert type(refusal) is UnreadableImageError
    assert str(refusal).startswith(f'Image {path} ')
    return 'refused'


def try_file(path: str) -> list[str]:
    """Outcomes of reading a file whole and reduced; inspection must say the same of it."""
    outcomes = [read(path, shorter_side) for shorter_side in (None, 30)]
    findings = inspect_image(ImageTask(path, 'a', (WIDTH, HEIGHT)), LoadImageChecked())
    assert any(finding.breaks for finding in findings) == (outcomes[0] == 'refused')
    return outcomes


def test_mutated_images_are_read_or_refused_clearly(tmp_path, capsys):
    images = base_images()
    outcomes, failures, seeds = Counter(), [], iter(range(FILES))
    for first in seeds:
        # A process that dies takes the pool with it: the next begins at the next file.
        with ProcessPoolExecutor(1, initializer=start) as pool:
            try:
                for seed in itertools.chain([first], seeds):
                    path = tmp_path / 'image'
                    path.write_bytes(mutated_image(seed, images))
                    try:
                        for outcome in pool.submit(try_file, str(path)).result(timeout=TIMEOUT):
                            outcomes[outcome] += 1
                    except AssertionError as error:
                        failures.append((seed, repr(error)))
            except BrokenProcessPool:
                failures.append((seed, 'killed its process'))
            except TimeoutError:
                failures.append((seed, f'takes more than {TIMEOUT} s'))
                for process in list(pool._processes.values()):
                    process.kill()
    with capsys.disabled():
        print(f' {dict(outcomes)}', end='')
    assert failures == []
    assert outcomes['read'] > 0.1 * outcomes['refused'] > 0


@pytest.mark.parametrize('number', range(21))
def test_the_images_are_read_before_they_are_mutated(tmp_path, number):
    path = tmp_path / 'image'
    path.write_bytes(base_images()[number])
    assert try_file(str(path)) == ['read', 'read']
