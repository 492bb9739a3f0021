"""Several processes on the CPU: evaluation, launchers, and what happens when one is lost."""

import json
import os
import shutil
import signal

from deim_mmdet.engine import DEIMRunner
from deim_mmdet.engine.processes import LostProcessError, init_gloo, naming_lost_processes

import pytest
import torch
import toy
from mmengine.config import Config
from processes import end_of_processes, in_processes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

pytestmark = pytest.mark.slow


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
        launcher=toy.two_processes(),
        expect=1,
    )
    assert 'Signal 9 (SIGKILL)' in log


def recorded(configs):
    """Records of several trainings, one after the other in the same processes."""
    records = []
    for config in configs:
        runner = toy_runner(config)
        runner.train()
        records.append(next(h.records for h in runner.hooks if hasattr(h, 'records')))
    return records


def write_recorded(folder, seed=0, workers=0, start_method='fork', **options):
    """A training with Dense O2O throughout, on images that are all the same."""
    config = toy.write_config(
        folder,
        custom_imports=dict(imports=['toy', 'process_toys', 'deim_mmdet']),
        custom_hooks=[
            dict(type='DerivedSeedHook'),
            dict(type='DenseO2OScheduleHook', stages=(0, 4, 4)),
            dict(type='ExpWarmupEMAHook'),
            dict(type='RecordHook'),
        ],
        launcher='pytorch',
        work_dir=str(folder / 'work'),
        randomness=dict(seed=seed),
        **{
            'env_cfg.mp_cfg.mp_start_method': start_method,
            'train_dataloader.num_workers': workers,
            'train_dataloader.persistent_workers': workers > 0,
            'train_cfg.max_epochs': 4,
            'train_cfg.val_interval': 10,
            'default_hooks.checkpoint.max_keep_ckpts': -1,
            **options,
        },
    )
    return config.rename(
        folder / f'{seed}_{workers}_{start_method}_{len(list(folder.iterdir()))}.py'
    )


def write_same_images(folder, images=16):
    toy.write_data_set(folder, images)
    for image in range(1, images):
        shutil.copy(folder / '0.png', folder / f'{image}.png')


def test_draws_follow_from_the_seed_and_differ_between_processes_and_workers(tmp_path):
    write_same_images(tmp_path)
    configs = [write_recorded(tmp_path, workers=workers) for workers in (0, 1, 2)]
    configs.append(write_recorded(tmp_path, seed=1))
    ranks = in_processes(recorded, 2, configs, folder=tmp_path)
    for none, one, two, other in ranks:
        assert none == one == two
        assert none != other
    first, second = (runs[2] for runs in ranks)
    orders = []
    for epoch in range(4):
        parts = [[n for e, ns, *_ in run if e == epoch for n in ns] for run in (first, second)]
        assert sorted(parts[0] + parts[1]) == list(range(16))
        orders.append(parts)
    assert all(orders[0] != order for order in orders[1:])
    # All images are the same: samples differ by what was drawn for them alone.
    digests = [digest for *_, ds, _ in (*first, *second) for digest in ds]
    assert len(set(digests)) > 0.95 * len(digests)
    sizes, objects = ([[draws[i] for *_, draws in run] for run in (first, second)] for i in (0, 1))
    assert sizes[0] == sizes[1]
    assert set(sizes[0]) == {toy.SIDE // 2, toy.SIDE}
    assert objects[0] != objects[1]


@pytest.mark.parametrize('ranks_differ', [False, True])
def test_resumed_processes_go_on_with_the_sizes_of_all(ranks_differ, tmp_path):
    """Also where the config gives each process a seed of its own."""
    write_same_images(tmp_path)
    randomness = {'randomness.diff_rank_seed': ranks_differ}
    whole = write_recorded(tmp_path, **randomness)
    checkpoint = tmp_path / 'work' / 'epoch_2.pth'
    resumed = write_recorded(tmp_path, **randomness, resume=True, load_from=str(checkpoint))
    runs = in_processes(recorded, 2, [whole, resumed], folder=tmp_path)
    for uninterrupted, rest in runs:
        assert rest == [record for record in uninterrupted if record[0] >= 2]
    first, second = ([draws for *_, draws in run] for run, _ in runs)
    assert [size for size, _ in first] == [size for size, _ in second]
    assert len({size for size, _ in first}) == 2
    assert first != second


def test_spawned_workers_draw_as_forked_ones(tmp_path):
    write_same_images(tmp_path)
    configs = [
        write_recorded(tmp_path, workers=workers, start_method=method)
        for workers, method in ((0, 'fork'), (2, 'spawn'))
    ]
    for none, spawned in in_processes(recorded, 2, configs, folder=tmp_path, timeout=400):
        assert none == spawned


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
