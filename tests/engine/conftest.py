import os

import pytest
import toy
from mmengine.config import Config

from deim_mmdet.engine import DEIMRunner


@pytest.fixture
def make_runner(tmp_path, request):
    """Build a runner of the toy config; keyword arguments are options like --cfg-options."""
    toy.write_data_set(tmp_path)

    def make(**options):
        cfg = Config.fromfile(toy.write_config(tmp_path), import_custom_modules=False)
        cfg.merge_from_dict(
            {
                'work_dir': str(tmp_path / 'work'),
                'launcher': 'none',
                'experiment_name': f'{request.node.name}_{make.count}',
                'train_dataloader.num_workers': 0,
                'train_dataloader.persistent_workers': False,
                'train_cfg.max_epochs': 4,
                'train_cfg.val_interval': 10,
                **options,
            }
        )
        make.count += 1
        return DEIMRunner.from_cfg(cfg)

    make.count = 0
    return make


@pytest.fixture
def around_changes_of_names(monkeypatch):
    """Function that has another one called before and after each file is renamed or removed."""

    def watch(check):
        def watched(function):
            def call(*arguments):
                check()
                function(*arguments)
                check()

            return call

        for name in ('replace', 'remove'):
            monkeypatch.setattr(os, name, watched(getattr(os, name)))

    return watch
