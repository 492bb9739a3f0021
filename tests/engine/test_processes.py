"""Several processes on the CPU: evaluation, launchers, and what happens when one is lost."""

import json
import os
import signal

import pytest
import torch
import toy
from mmengine.config import Config
from processes import end_of_processes, in_processes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deim_mmdet.engine import DEIMRunner
from deim_mmdet.engine.processes import LostProcessError, init_gloo, naming_lost_processes


def toy_runner(config, **options):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options)
    return DEIMRunner.from_cfg(cfg)


def evaluate(config):
    return toy_runner(config).test()


def write_evaluation(folder, images):
    """A config whose detector finds some of the objects, and the file that it writes them to."""
    toy.write_data_set(folder, images)
    config = toy.write_config(
        folder,
        custom_imports=dict(imports=['toy', 'process_toys', 'deim_mmdet']),
        launcher='pytorch',
        work_dir=str(folder / 'work'),
        **{'model.type': 'KnowingDetector', 'test_evaluator.outfile_prefix': str(folder / 'found')},
    )
    return config, folder / 'found.bbox.json'


def average_precision(folder, detections):
    truth = COCO(str(folder / 'all.json'))
    evaluation = COCOeval(truth, truth.loadRes(detections), 'bbox')
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        step()
    return evaluation.stats[0]


@pytest.mark.parametrize(('images', 'processes'), [(7, 2), (7, 3), (2, 3)])
def test_evaluation_counts_every_image_once(images, processes, tmp_path):
    config, file = write_evaluation(tmp_path, images)
    results = in_processes(evaluate, processes, config, folder=tmp_path)
    found = json.loads(file.read_text())
    # Two objects in images with an even number, one corner elsewhere.
    assert sorted(d['image_id'] for d in found) == sorted(
        image for image in range(images) for _ in range(2 - image % 2)
    )
    expected = average_precision(tmp_path, found)
    for result in results:
        assert result['coco/bbox_mAP'] == pytest.approx(expected, abs=1e-3)
    if images < processes:
        return
    # The image that fills up the shards would have shown.
    twice = found + [d for d in found if d['image_id'] == 0]
    assert average_precision(tmp_path, twice) < expected - 0.01


def train_toy(config):
    toy_runner(config).train()


def write_faulty(folder, fault, **options):
    """A training whose second process fails in its second epoch."""
    toy.write_data_set(folder)
    hooks = [dict(type='RankFaultHook', rank=1, fault=fault)]
    return toy.write_config(
        folder,
        custom_imports=dict(imports=['toy', 'process_toys', 'deim_mmdet']),
        custom_hooks=[dict(type='DenseO2OScheduleHook'), dict(type='ExpWarmupEMAHook'), *hooks],
        work_dir=str(folder / 'work'),
        **options,
    )


@pytest.mark.parametrize(
    ('fault', 'exitcode'), [('kill', -signal.SIGKILL), ('raise', 1)], ids=['kill', 'raise']
)
def test_lost_process_ends_the_others(fault, exitcode, tmp_path):
    """Without any agent, as under Slurm; with workers, which hold the connections open."""
    config = write_faulty(tmp_path, fault, launcher='pytorch')
    ends = end_of_processes(train_toy, 3, config, folder=tmp_path, timeout=60)
    assert [end.exitcode for end in ends] == [1, exitcode, 1]
    for rank in (0, 2):
        assert f'LostProcessError: process {rank} of 3 stops' in ends[rank].error
        assert '--resume' in ends[rank].error
    if fault == 'raise':
        assert 'OSError: the disk of this machine is broken' in ends[1].error


def test_torchrun_ends_the_others(tmp_path):
    config = write_faulty(tmp_path, 'kill')
    log = toy.train(
        config,
        *('--launcher', 'pytorch'),
        launcher=(
            *('-m', 'torch.distributed.run', '--nproc_per_node=2'),
            f'--master_port={20000 + os.getpid() % 10000}',
        ),
        expect=1,
    )
    assert 'Signal 9 (SIGKILL)' in log


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match='shapes') as caught, naming_lost_processes():
        raise RuntimeError('shapes differ')
    assert not isinstance(caught.value, LostProcessError)
    with pytest.raises(LostProcessError, match='process 0 of 1'), naming_lost_processes():
        raise torch.distributed.DistBackendError('NCCL error: remote process exited')


def join_by(launcher, variables):
    """Sum of the ranks, as a process started by another launcher computes it."""
    for name, ours in variables.items():
        os.environ[name] = os.environ.pop(ours)
    del os.environ['MASTER_ADDR']
    if launcher == 'slurm':
        os.environ['SLURM_JOB_NODELIST'] = 'node[1-2]'
        os.environ['PATH'] = os.getcwd()
    else:
        os.environ['MASTER_ADDR'] = '127.0.0.1'
    init_gloo(launcher, 60)
    rank = torch.tensor(torch.distributed.get_rank())
    torch.distributed.all_reduce(rank)
    return int(rank), int(os.environ['LOCAL_RANK'])


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers(launcher, tmp_path):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && echo 127.0.0.1\n')
    scontrol.chmod(0o755)
    variables = dict(
        slurm=dict(SLURM_PROCID='RANK', SLURM_NTASKS='WORLD_SIZE', SLURM_LOCALID='LOCAL_RANK'),
        mpi=dict(
            OMPI_COMM_WORLD_RANK='RANK',
            OMPI_COMM_WORLD_SIZE='WORLD_SIZE',
            OMPI_COMM_WORLD_LOCAL_RANK='LOCAL_RANK',
        ),
    )
    assert in_processes(join_by, 2, launcher, variables[launcher], folder=tmp_path) == [
        (1, 0),
        (1, 1),
    ]


def test_processes_that_no_launcher_started(monkeypatch):
    monkeypatch.delenv('SLURM_PROCID', raising=False)
    with pytest.raises(ValueError, match=r'--launcher slurm.*SLURM_PROCID'):
        init_gloo('slurm', 60)
