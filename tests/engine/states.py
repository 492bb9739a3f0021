"""Comparison of trainings by everything that their checkpoints say, bit for bit."""

from pathlib import Path

from deim_mmdet.checkpoints.files import read_checkpoint

import numpy as np
import torch

#: What of the message hub names a folder or a file in it, and what each start sets anew (mmengine's
#: version has the commit of the checkout in it) or the clock does.
PATHS = ('last_ckpt', 'best_ckpt')
OF_THE_START = ('cfg', 'experiment_name', 'mmengine_version', 'epoch', 'iter', 'eta')


def state_of(path):
    """All of a checkpoint that says where a training is, or how it goes on."""
    checkpoint = read_checkpoint(path)
    info = {
        key: Path(value).name if key in PATHS else value
        for key, value in checkpoint['message_hub']['runtime_info'].items()
        if key not in OF_THE_START
    }
    losses = {
        name: buffer.data[0].tolist()
        for name, buffer in checkpoint['message_hub']['log_scalars'].items()
        if 'loss' in name or 'lr' in name
    }
    meta = {key: checkpoint['meta'][key] for key in ('epoch', 'iter', 'seed')}
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    return dict(
        meta=meta, info=info, losses=losses, **{part: checkpoint.get(part) for part in parts}
    )


def last_state(work_dir):
    """State of the checkpoint that a resumed run would go on from."""
    return state_of((Path(work_dir) / 'last_checkpoint').read_text())


def differences(first, second, where=''):
    """Places at which two states differ; tensors are compared bit for bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        places = [f'{where}/{key}' for key in first.keys() ^ second.keys()]
        for key in first.keys() & second.keys():
            places += differences(first[key], second[key], f'{where}/{key}')
        return places
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        if len(first) != len(second):
            return [where]
        pairs = enumerate(zip(first, second, strict=True))
        return [place for i, (a, b) in pairs for place in differences(a, b, f'{where}/{i}')]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) and first.dtype == second.dtype else [where]
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return [] if np.array_equal(first, second) else [where]
    return [] if first == second else [where]


def different_runs(first, second):
    """Places at which the checkpoints in two work directories differ, by name and by content."""
    names = [sorted(path.name for path in Path(folder).glob('*.pth')) for folder in (first, second)]
    if names[0] != names[1]:
        return [f'files: {names[0]} and {names[1]}']
    places = []
    for name in names[0]:
        states = (state_of(Path(folder) / name) for folder in (first, second))
        places += [f'{name}{place}' for place in differences(*states)]
    return places


def assert_equal_runs(first, second):
    """The same checkpoints in two work directories, and nothing half written in the second."""
    assert list(Path(first).glob('*.pth'))
    assert not different_runs(first, second)
    assert not list(Path(second).glob('.tmp-*'))
