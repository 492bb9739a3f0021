"""What a training tells a GPU, seen on a GPU that computes nothing."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from deim_mmdet.ops import compiled

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / 'benchmarks/simulated_training.py'
# The costs of the matching; the norm of the gradients with the check of the losses.
WAITS = {'pairs.py': 1, 'non_finite_loss_hook.py': 1}
# The images; the targets; all pairs.
COPIES = {'data_preprocessor.py': 1, 'targets.py': 1, 'pairs.py': 1}

pytestmark = pytest.mark.skipif(
    torch.__version__ < '2.13' or bool(compiled.MISSING) or shutil.which('c++') is None,
    reason='the simulated GPU needs torch 2.13 or newer, a C++ compiler and compiled operators',
)


def simulate(*options):
    """The script's figures of one model, with files in place of lines."""
    command = [sys.executable, SCRIPT, '--json', *map(str, options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    [found] = json.loads(done.stdout.splitlines()[-1]).values()
    for what, places in found.items():
        if isinstance(places, dict):
            files = Counter()
            for place, number in places.items():
                files[place.split(':')[0]] += number
            found[what] = files
    return found


@pytest.mark.parametrize(
    ('model', 'most'),
    [
        # 0.6 times the kernels of version 0.1 are 2312 (N) and 3005 (L).
        ('deim_dfine_n', 1950),
        *(
            pytest.param(model, most, marks=pytest.mark.slow)
            for model, most in {
                'dfine_l': 2750,
                'deim_dfine_l': 2900,
                'deim_rtdetrv2_r18': 1550,
                'deim_rtdetrv2_r50': 2350,
                'deimv2_pico': 1760,
                'deimv2_s': 2820,
                'ecdet_s': 2560,
            }.items()
        ),
    ],
)
def test_an_iteration_in_mixed_precision(model, most):
    """A tensor of the host among those of the GPU would be an error."""
    found = simulate('--models', model, '--side', 64, '--batch', 2)
    assert found['waits'] == WAITS
    assert found['copies'] == COPIES
    # Of four batches.
    assert found['waits_of_evaluation'] == {'coco_metric.py': 4}
    assert found['convolutions'] > 20
    assert found['single'] == 0
    assert not found['planes']
    assert found['calls'] <= most


@pytest.mark.slow
def test_all_stages():
    """Four iterations each, with mosaics, mixup and other sizes; the log reads once in an epoch."""
    found = simulate('--models', 'deim_dfine_n', '--side', 64, '--batch', 2, '--stages')
    waits = {**dict.fromkeys(WAITS, 4), 'deferred_runtime_info_hook.py': 1}
    assert found == {f'epoch {number}': waits for number in range(1, 6)}


@pytest.mark.slow
def test_memory_of_large_batches():
    """All of a training's tensors; the kernels' own memory comes on top of it."""
    most = {'dfine_n': (32, 4310), 'dfine_l': (16, 5810)}
    for model, (batch, mib) in most.items():
        assert simulate('--models', model, '--batch', batch)['peak_mib'] <= mib


@pytest.mark.slow
def test_single_precision_and_layouts_are_seen():
    options = ('--models', 'deim_dfine_n', '--side', 64, '--batch', 2)
    found = simulate(*options, '--amp', 'fp32', '--cfg-options', 'env_cfg.channels_last=False')
    assert found['single'] == found['convolutions'] - 1
    assert found['waits'] == WAITS
    assert sum(found['planes'].values()) > 20
