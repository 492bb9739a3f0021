"""Short trainings of the real model through tools/train.py, as users start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden import build_model
from mmengine.analysis import get_model_complexity_info


def run(*command, **environment) -> str:
    """Output of a Python script, which must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=dict(os.environ, OMP_NUM_THREADS='1', **environment),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


def scalars(work_dir: Path) -> list[dict]:
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def digits(tmp_path_factory, repo_root) -> Path:
    folder = tmp_path_factory.mktemp('digits') / 'data'
    run(repo_root / 'tools/demo/make_dataset.py', folder, '--train', 10, '--val', 2, '--size', 64)
    return folder


def options(data: Path, epochs: int) -> list[str]:
    """The demo's config on other data, at the smallest size."""
    return [
        '--cfg-options',
        f'data_root={data}',
        'image_size=64',
        f'train_cfg.max_epochs={epochs}',
        'train_cfg.val_interval=100',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'default_hooks.logger.interval=1',
    ]


def test_mixed_precision_on_the_cpu(digits, repo_root, tmp_path):
    """20 iterations in bfloat16 with finite losses."""
    output = run(
        repo_root / 'tools/train.py', repo_root / 'configs/demo/deim_dfine_demo.py', '--amp',
        '--work-dir', tmp_path, *options(digits, epochs=4),
    )  # fmt: skip
    losses = [row['loss'] for row in scalars(tmp_path) if 'loss' in row]
    assert len(losses) == 20
    assert torch.tensor(losses).isfinite().all()
    assert 'bfloat16' in output


def test_two_processes(digits, repo_root, tmp_path):
    """Two gloo processes train, with batches of one rank that hold no object among them."""
    annotations = json.loads((digits / 'train.json').read_text())
    empty = {image['id'] for image in annotations['images'][::2]}
    annotations['annotations'] = [
        a for a in annotations['annotations'] if a['image_id'] not in empty
    ]
    data = tmp_path / 'data'
    data.mkdir()
    for name in ('train', 'val', 'val.json'):
        (data / name).symlink_to(digits / name)
    (data / 'train.json').write_text(json.dumps(annotations))
    run(
        '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
        repo_root / 'tools/train.py', repo_root / 'configs/demo/deim_dfine_demo.py',
        '--launcher', 'pytorch', '--work-dir', tmp_path / 'work', *options(data, epochs=4),
        'train_dataloader.batch_size=1',
    )  # fmt: skip
    losses = [row['loss'] for row in scalars(tmp_path / 'work') if 'loss' in row]
    assert len(losses) == 4 * 5
    assert torch.tensor(losses).isfinite().all()


def test_bccd(shared_dir, repo_root, tmp_path):
    """Four epochs, one in each stage, on real photographs with a box without area among them."""
    output = run(
        repo_root / 'tools/train.py', repo_root / 'configs/deim_dfine_n_bccd.py',
        '--work-dir', tmp_path, '--cfg-options', f'data_root={shared_dir / "data/bccd"}',
        'image_size=96', 'train_cfg.max_epochs=4', 'train_cfg.val_interval=4',
        'model.backbone.init_cfg=None', 'train_dataloader.num_workers=1',
        'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False',
    )  # fmt: skip
    assert 'dropped 1 of' in output
    assert '1 without area' in output
    for stage in ('warm-up', 'dense', 'flat', 'no-augmentation'):
        assert f'stage {stage} begins' in output
    aps = [row['coco/bbox_mAP'] for row in scalars(tmp_path) if 'coco/bbox_mAP' in row]
    assert len(aps) == 1
    assert 0 <= aps[0] <= 1


@pytest.mark.parametrize(('name', 'gflops'), [('deim_dfine_n', 7), ('deim_dfine_m', 57)])
def test_flops_are_the_published_ones(name, gflops):
    """The papers count a multiply-add as two, after merging re-parameterised branches."""
    model = build_model(name).eval()
    inputs = torch.zeros(1, 3, 640, 640)
    counted = get_model_complexity_info(
        model, None, inputs=inputs, show_table=False, show_arch=False
    )
    assert gflops <= 2 * counted['flops'] / 1e9 <= 1.03 * gflops
