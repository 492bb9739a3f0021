"""The package beside an MMCV without operators, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmdet_tools import needs_operators

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# As if MMCV had been installed without them.
WITHOUT_OPERATORS = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == 'mmcv._ext' else find_spec(name)
"""
DETECT = """
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
init_default_scope('mmdet')
cfg = Config.fromfile('configs/deim_dfine_n.py')
cfg.model.backbone.init_cfg = None
cfg.model.bbox_head.query_selection.num_queries = 10
model = MODELS.build(cfg.model).eval()
with torch.no_grad():
    scores, boxes = model(torch.rand(1, 3, 64, 64))
print('boxes', tuple(boxes.shape))
"""


def run(code):
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_models_need_no_operators_of_mmcv():
    out = run(
        f"""{WITHOUT_OPERATORS}
import deim_mmdet
import mmcv.ops
try:
    mmcv.ops.soft_nms(__import__('torch').rand(3, 4), __import__('torch').rand(3))
except deim_mmdet.compat.MissingOperatorError as error:
    print('refused:', error)
{DETECT}"""
    )
    assert "refused: MMCV's operator softnms is called, but this MMCV is installed without" in out
    assert 'boxes (1, 10, 4)' in out


@needs_operators
def test_working_operators_are_never_replaced():
    out = run("""
import deim_mmdet, mmcv.ops, sys, torch
boxes = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]])
kept, indices = mmcv.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
print('kept', indices.tolist(), sys.modules['mmcv._ext'].__file__ is not None)
print('stands in', deim_mmdet.compat.provide_operators())
""")
    assert 'kept [0, 2] True' in out
    assert 'stands in False' in out


def test_scripts_of_mmdet_run_through_the_package(tmp_path):
    script = tmp_path / 'script.py'
    (tmp_path / 'neighbour.py').write_text('VALUE = 3')
    script.write_text('import sys, mmdet.apis, neighbour; print(sys.argv, neighbour.VALUE)')
    command = (sys.executable, '-m', 'deim_mmdet')
    options = dict(cwd=ROOT, capture_output=True, text=True, timeout=600)
    done = subprocess.run([*command, script, '--out', 'x'], **options, check=True)
    assert done.stdout.splitlines()[-1] == f"['{script}', '--out', 'x'] 3"
    done = subprocess.run([*command, tmp_path / 'none.py'], **options)
    assert done.returncode == 1
    assert f'{tmp_path}/none.py: give the path of a script' in done.stderr
