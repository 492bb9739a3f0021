import json

from deim_mmdet.visualization.figures import STAGE_COLOURS

import cv2
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis/plot_training.py')


def write_run(work_dir, lines, config):
    folder = work_dir / '20250101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    (folder / 'config.py').write_text(config)


def train_line(step, epoch, loss):
    return {'lr': 1e-3, 'loss': loss, 'loss_bbox': 1.0, 'epoch': epoch, 'iter': step, 'step': step}


def test_plots_with_and_without_stages(tool, tmp_path):
    lines = [train_line(i, 1 + (i - 1) // 10, 10 / i) for i in range(1, 41)]
    lines += [{'coco/bbox_mAP': 0.1 * e, 'coco/bbox_mAP_50': 0.2 * e, 'step': e} for e in (2, 4)]
    for name, config in (
        ('plain', 'model = dict()\n'),
        ('deim', "custom_hooks = [dict(type='DenseO2OScheduleHook', stages=(1, 2, 3))]\n"),
    ):
        write_run(tmp_path / name, lines, config)
        tool.plot_training(tmp_path / name, tmp_path / f'{name}.png')
    plain, deim = (cv2.imread(str(tmp_path / f'{name}.png')) for name in ('plain', 'deim'))
    assert plain.shape == deim.shape
    # The stages' colours are in the one plot and not in the other.
    for colour in STAGE_COLOURS.values():
        bgr = tuple(int(colour[i : i + 2], 16) for i in (5, 3, 1))
        assert (deim == bgr).all(axis=2).sum() > 1000
        assert (plain == bgr).all(axis=2).sum() < 100
