"""Several processes restart together or not at all, whatever each sees in its work directory."""

from pathlib import Path
from types import SimpleNamespace

from deim_mmdet.engine.hooks import EMARestartHook
from deim_mmdet.engine.hooks.ema_restart_hook import RESTART_CHECKPOINT

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook

pytestmark = pytest.mark.slow

FOLDERS = {
    'shared': ('here', 'here'),
    'not there': ('here', 'nowhere'),
    'another epoch': ('here', 'there'),
    'another run': ('here', 'elsewhere'),
    'lost': ('nowhere', 'nowhere'),
}


def read_rank(rank: int, folder: Path) -> None:
    """What each of two ranks reads in each case, and what it says of the file at the start."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2
    )
    results = []
    for folders in FOLDERS.values():
        checkpoint_hook = CheckpointHook(out_dir=str(folder / folders[rank]))
        checkpoint_hook.file_backend = LocalBackend()
        runner = SimpleNamespace(hooks=[checkpoint_hook])
        checkpoint, problem = EMARestartHook()._read(runner)
        try:
            EMARestartHook()._check_file(runner)
            missing = False
        except FileNotFoundError:
            missing = True
        results.append((checkpoint and checkpoint['meta']['epoch'], problem, missing))
    torch.save(results, folder / f'rank_{rank}.pt')
    torch.distributed.destroy_process_group()


def test_ranks_restart_from_one_checkpoint_or_not_at_all(tmp_path):
    for name, epoch, time in (('here', 1, '9:00'), ('there', 2, '9:00'), ('elsewhere', 1, '8:00')):
        (tmp_path / name).mkdir()
        meta = dict(epoch=epoch, iter=10 * epoch, time=time)
        torch.save(dict(state_dict={}, meta=meta), tmp_path / name / RESTART_CHECKPOINT)
    torch.multiprocessing.start_processes(read_rank, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f'rank_{rank}.pt') for rank in range(2)]
    for case, first, second in zip(FOLDERS, *ranks, strict=True):
        epoch, problem, missing = first
        assert missing == second[2] == (case in ('not there', 'lost'))
        if case == 'shared':
            assert (epoch, problem) == (1, None)
            assert second[:2] == first[:2]
            continue
        assert epoch is second[0] is None
        assert problem == second[1]
        different = {
            'another epoch': 'epoch 1, of 9:00 and epoch 2, of 9:00',
            'another run': 'epoch 1, of 8:00 and epoch 1, of 9:00',
        }
        assert different.get(case, RESTART_CHECKPOINT) in problem
