"""A training that is killed at random and resumed comes to what the undisturbed one does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from test_real_training import MODEL, SMALL, data_options

pytestmark = pytest.mark.slow


def kill_and_compare(folder, config, kills, *options):
    """Run ``kills.py``, see that nothing was damaged or differs; returns the kills by kind."""
    script = Path(__file__).with_name('kills.py')
    command = [sys.executable, script, folder / 'runs', config, '--kills', str(kills)]
    done = subprocess.run(
        [*command, '--cfg-options', *options],
        env=toy.environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report['damaged'], report['different']) == ([], [])
    assert done.returncode == 0
    return report['kills']


def test_killed_fifty_times(tmp_path):
    toy.write_data_set(tmp_path)
    options = ('train_cfg.max_epochs=30', 'train_cfg.val_interval=1')
    kills = kill_and_compare(tmp_path, toy.write_config(tmp_path), 50, *options)
    assert sum(kills.values()) == 50
    assert min(kills.values()) > 5


def test_smallest_model_killed(tmp_path):
    toy.write_data_set(tmp_path)
    kills = kill_and_compare(
        *(tmp_path, MODEL, 5, *SMALL, *data_options(tmp_path)),
        *('train_dataloader.batch_size=2', 'train_cfg.max_epochs=5', 'randomness.seed=0'),
    )
    assert sum(kills.values()) == 5
