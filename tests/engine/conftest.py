import os

from deim_mmdet.engine import DEIMRunner

import pytest
import toy


@pytest.fixture
def make_runner(tmp_path, request):
    """Build a runner of the toy config; keyword arguments are options like --cfg-options."""
    toy.write_data_set(tmp_path)

    def make(**options):
        options = {'train_cfg.max_epochs': 4, 'train_cfg.val_interval': 10, **options}
        cfg = toy.in_process(tmp_path, f'{request.node.name}_{make.count}', **options)
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
