"""The demo at a fraction of its length."""

import json
import re
import subprocess
import sys
from pathlib import Path

from deim_mmdet.checkpoints.files import read_checkpoint

import cv2
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def tool(load_tool, monkeypatch_module):
    monkeypatch_module.syspath_prepend(str(ROOT / 'tools/demo'))
    return load_tool('demo/run.py')


@pytest.fixture(scope='module')
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_demo_runs_through_all_stages_and_leaves_what_it_says(tmp_path):
    pytest.importorskip('sklearn')
    work_dir = tmp_path / 'demo'
    command = (sys.executable, ROOT / 'tools/demo/run.py', '--fraction', '0.01')
    done = subprocess.run(
        [*command, '--work-dir', work_dir],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stages = re.findall(r'epoch +\d+: stage (\S+)', done.stdout)
    assert stages == ['warm-up', 'dense', 'flat', 'no-augmentation']
    assert re.search(r'Done in .* AP50 [\d.]+', done.stdout)

    # Every path that it names at its end is there.
    named = [Path(path) for path in re.findall(r'^ +\S.*  ?(/\S+)$', done.stdout, re.M)]
    assert len(named) >= 6
    assert all(path.exists() for path in named), named
    for name in ('detections', 'dense_o2o', 'training'):
        picture = cv2.imread(str(work_dir / 'pictures' / f'{name}.png'))
        assert picture.std() > 10
    assert len(json.loads((work_dir / 'data/val.json').read_text())['images']) == 32
    checkpoint = read_checkpoint((work_dir / 'training/last_checkpoint').read_text())
    assert checkpoint['meta']['epoch'] == 4


def test_demo_passes_a_failure_on(tool, tmp_path):
    with pytest.raises(tool.DemoError, match=r'(?s)no such thing.*output\.log'):
        tool.run(
            [sys.executable, '-c', 'raise SystemExit("no such thing")'], tmp_path / 'output.log'
        )


def test_progress_is_taken_from_the_log(tool):
    train = (
        '11/22 20:22:11 - mmengine - INFO - Epoch(train)  [1][20/80]  base_lr: 7.4587e-04 '
        'lr: 7.4587e-04  eta: 0:33:43  time: 1.2808  grad_norm: 25.7770  loss: 48.1775  '
        'd0.loss_cls: 0.0816'
    )
    assert tool.progress_line(train) == (
        '  epoch  1 iteration  20 of 80  loss 48.1775  lr 7.4587e-04  0:33:43 left'
    )
    val = 'Epoch(val) [2][4/4]    coco/bbox_mAP: 0.1000  coco/bbox_mAP_50: 0.3000  time: 1'
    assert tool.progress_line(val) == '  epoch  2 evaluated: AP 0.1000  AP50 0.3000'
    assert tool.progress_line('Epoch 3 of 20: stage dense begins') == '  epoch  3: stage dense'
    assert tool.progress_line('before_train: (VERY_HIGH) RuntimeInfoHook') is None


@pytest.mark.parametrize('fraction', ['0', '1.5', '-1'])
def test_fraction_is_checked(fraction):
    command = (sys.executable, ROOT / 'tools/demo/run.py', f'--fraction={fraction}')
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert '--fraction' in done.stderr
