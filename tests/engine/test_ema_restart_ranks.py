"""Who reads the checkpoint of a restart, of several processes: in one folder, or in several."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from deim_mmdet.engine.hooks import EMARestartHook, ema_restart_hook
from deim_mmdet.engine.hooks.ema_restart_hook import RESTART_CHECKPOINT

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook

pytestmark = pytest.mark.slow

FOLDERS = {
    'shared': ('here', 'here'),
    'not there': ('here', 'nowhere'),
    'another file': ('here', 'there'),
    'lost': ('nowhere', 'nowhere'),
}


def read_rank(rank: int, folder: Path) -> None:
    """What each of two ranks reads in each case, and whether it has read it itself."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2
    )
    found = []
    for folders in FOLDERS.values():
        checkpoint_hook = CheckpointHook(out_dir=str(folder / folders[rank]))
        checkpoint_hook.file_backend = LocalBackend()
        load = mock.Mock(wraps=ema_restart_hook.load_from_deim_mmdet)
        with mock.patch.object(ema_restart_hook, 'load_from_deim_mmdet', load):
            runner = SimpleNamespace(hooks=[checkpoint_hook])
            checkpoint, problem = EMARestartHook()._read(runner)
        found.append((checkpoint and checkpoint['number'], problem, load.called))
    torch.save(found, folder / f'rank_{rank}.pt')
    torch.distributed.destroy_process_group()


def test_every_rank_reads_the_checkpoint_that_the_main_process_sees(tmp_path):
    for number, name in enumerate(('here', 'there')):
        (tmp_path / name).mkdir()
        torch.save(dict(state_dict={}, number=number), tmp_path / name / RESTART_CHECKPOINT)
    torch.multiprocessing.start_processes(read_rank, (tmp_path,), nprocs=2)
    for rank in range(2):
        found = dict(zip(FOLDERS, torch.load(tmp_path / f'rank_{rank}.pt'), strict=True))
        number, problem, _ = found.pop('lost')
        assert number is None
        assert RESTART_CHECKPOINT in problem
        itself = dict(shared=True) if rank else dict.fromkeys(found, True)
        assert found == {case: (0, None, itself.get(case, False)) for case in found}
