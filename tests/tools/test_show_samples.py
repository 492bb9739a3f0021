from pathlib import Path

from deim_mmdet.engine.config import load_config

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SIDE, COLUMNS = 96, 4


@pytest.fixture(scope='module')
def draw(load_tool, tmp_path_factory):
    """Draw a sheet of the demo's config by seed: {stage: (SIDE, width, 3)} strips of pictures."""
    pytest.importorskip('sklearn')
    maker = load_tool('demo/make_dataset.py')
    tool = load_tool('analysis/show_samples.py')
    root = tmp_path_factory.mktemp('data') / 'digits'
    digits = (0, 2, 3, 4)
    maker.make_dataset(root, maker.SceneSettings(train=12, val=1, size=(128, 128), digits=digits))
    path = ROOT / 'configs/demo/deim_dfine_demo.py'

    def draw_strips(seed: int) -> dict[str, np.ndarray]:
        config = load_config(str(path), dict(data_root=str(root)))
        sheet = tool.show_samples(config, COLUMNS, 1, SIDE, seed)
        row = (sheet.shape[0] - 6) // 4
        stages = ('warm-up', 'dense', 'flat', 'no-augmentation')
        # From a row's end upwards: without its caption, whose figures differ.
        ends = {stage: (i + 1) * row for i, stage in enumerate(stages)}
        return {stage: sheet[end - SIDE : end] for stage, end in ends.items()}

    return draw_strips


def test_stages_augment_as_the_schedule_says(draw):
    strips = draw(seed=0)
    np.testing.assert_array_equal(strips['warm-up'], strips['no-augmentation'])
    for stage in ('dense', 'flat'):
        changed = (strips[stage] != strips['warm-up']).any(axis=2).mean()
        assert changed > 0.3, stage
    assert (strips['dense'] != strips['flat']).any(axis=2).mean() > 0.3


def test_seed_decides(draw):
    first, again, other = draw(seed=0), draw(seed=0), draw(seed=1)
    for stage, strip in first.items():
        np.testing.assert_array_equal(strip, again[stage])
        assert (strip != other[stage]).any()
