"""Programs that follow trainings get the numbers of the log."""

import json

from deim_mmdet.engine.config import load_config

import pytest
import toy
from mmengine.registry import RUNNERS

pytestmark = pytest.mark.slow


def test_mlflow_has_the_last_numbers_and_the_config(tmp_path):
    mlflow = pytest.importorskip('mlflow')
    pytest.importorskip('sqlalchemy')
    store = f'sqlite:///{tmp_path}/mlflow.db'
    toy.write_data_set(tmp_path)
    cfg = load_config(toy.write_config(tmp_path), {})
    cfg.visualizer.vis_backends = [
        dict(type='LocalVisBackend'),
        dict(
            type='MLflowVisBackend',
            exp_name='toys',
            tracking_uri=store,
            artifact_location=str(tmp_path / 'files'),
        ),
    ]
    cfg.update(work_dir=str(tmp_path / 'work'), launcher='none')
    runner = RUNNERS.build(cfg)
    runner.train()
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name('toys').experiment_id])
    assert run.info.artifact_uri.startswith(str(tmp_path / 'files'))
    assert run.data.params['train_cfg.max_epochs'] == str(cfg.train_cfg.max_epochs)
    (file,) = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    last = [entry for entry in entries if 'loss' in entry][-1]
    assert run.data.metrics['loss'] == pytest.approx(last['loss'], rel=1e-4)
    assert run.data.metrics['coco/bbox_mAP'] == entries[-1]['coco/bbox_mAP']
