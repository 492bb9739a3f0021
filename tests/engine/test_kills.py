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


def kill_toy(folder, kills, epochs):
    toy.write_data_set(folder)
    options = (f'train_cfg.max_epochs={epochs}', 'train_cfg.val_interval=1')
    return kill_and_compare(folder, toy.write_config(folder), kills, *options)


def test_killed_a_few_times(tmp_path):
    assert sum(kill_toy(tmp_path, 6, 8).values()) == 6


def test_killed_fifty_times(tmp_path):
    kills = kill_toy(tmp_path, 50, 30)
    assert sum(kills.values()) == 50
    assert min(kills.values()) > 5


def test_smallest_model_killed(tmp_path):
    toy.write_data_set(tmp_path)
    kills = kill_and_compare(
        *(tmp_path, MODEL, 10, *SMALL, *data_options(tmp_path)),
        *('train_dataloader.batch_size=2', 'train_cfg.max_epochs=8', 'randomness.seed=0'),
    )
    assert sum(kills.values()) == 10
