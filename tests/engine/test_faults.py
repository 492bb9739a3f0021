"""Faults of the machine: each ends with one message or is got over, and no checkpoint is lost."""

import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.engine import RunFault
from deim_mmdet.engine.faults import check_writable, checkpoint_size, find_resumable

import pytest
import torch
import toy
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook

pytestmark = pytest.mark.slow


class At(Hook):
    """Calls a function at a point of the training, from an epoch (counted from 0) on."""

    priority = 'LOWEST'

    def __init__(self, point, epoch, action):
        setattr(self, point, lambda runner, *args, **kwargs: self.act(runner))
        self.epoch, self.action = epoch, action

    def act(self, runner):
        if runner.epoch >= self.epoch:
            self.action()


def assert_resumable(work_dir, name):
    """``last_checkpoint`` names a whole file, and nothing half written lies about."""
    path = Path((work_dir / 'last_checkpoint').read_text())
    assert path == work_dir / name
    assert 'optimizer' in read_checkpoint(path)
    assert not list(work_dir.glob('.tmp-*'))


@pytest.fixture
def full_disk():
    """Call it to let no file grow over a size from now on, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ('moment', 'size', 'words'),
    [
        (
            'before_save_checkpoint',
            8192,
            r'epoch_3\.pth could not be .*about.* free.*--resume',
        ),
        ('before_train_epoch', 100, r'could not be written.* MB are free in .*/work\..*--resume'),
    ],
    ids=['saving', 'logging'],
)
def test_disk_full(moment, size, words, make_runner, tmp_path, full_disk):
    runner = make_runner()
    runner.register_hook(At(moment, 2, lambda: full_disk(size)))
    with pytest.raises(RunFault, match=words):
        runner.train()
    assert_resumable(tmp_path / 'work', 'epoch_2.pth')


def test_no_space_for_a_single_checkpoint(make_runner, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: free)
    with pytest.raises(RunFault, match=r'work has 0\.0 MB of free space, but a checkpoint'):
        make_runner().train()
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_estimated_size_of_a_checkpoint(make_runner):
    runner = make_runner()
    runner.train()
    written = read_checkpoint(Path(runner.work_dir) / 'epoch_4.pth')
    tensors = [*written['state_dict'].values(), *written['ema_state_dict'].values()]
    for state in written['optimizer']['state'].values():
        tensors += [state['exp_avg'], state['exp_avg_sq']]
    # But for the two counters, of updates and of each parameter's steps.
    assert checkpoint_size(runner) == sum(t.numel() * t.element_size() for t in tensors) - 8


def test_work_dir_that_cannot_be_written(tmp_path):
    file = tmp_path / 'file'
    file.write_text('no folder')
    with pytest.raises(RunFault, match=rf'cannot write to .*{file}/work \(Not a dir.*--work-dir'):
        check_writable(file / 'work')
    check_writable(tmp_path / 'new' / 'work')
    assert not list((tmp_path / 'new' / 'work').iterdir())


def test_no_memory_left_on_the_gpu(make_runner, monkeypatch):
    """Its cause may come late: images of the largest size, or with the most objects."""
    runner = make_runner()
    loss = runner.model.loss

    def full(*args):
        if runner.iter == 5:
            raise torch.OutOfMemoryError(
                'CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.1 '
                'GiB of which 1.00 GiB is free. See documentation for Memory Management'
            )
        return loss(*args)

    monkeypatch.setattr(runner.model, 'loss', full)
    message = r'^CUDA out of memory. Tried to allocate 2.50 GiB. A training .*--batch-size auto'
    with pytest.raises(RunFault, match=message):
        runner.train()


def test_killed_worker(make_runner, tmp_path):
    runner = make_runner(
        **{'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True}
    )

    def kill():
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()

    runner.register_hook(At('before_train_epoch', 2, kill))
    with pytest.raises(RunFault, match=r'process id \d+.* memory .*train_dataloader\.num_workers'):
        runner.train()
    assert_resumable(tmp_path / 'work', 'epoch_2.pth')


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize(
    ('spoil', 'words'),
    [(os.remove, 'Cannot open image {}'), (lambda file: os.truncate(file, 0), 'Image {} is empty')],
    ids=['vanished', 'emptied'],
)
def test_image_that_can_no_longer_be_read(make_runner, tmp_path, spoil, words, num_workers):
    runner = make_runner(**{'train_dataloader.num_workers': num_workers})
    image = tmp_path / '3.png'
    runner.register_hook(At('before_train_epoch', 2, lambda: spoil(image)))
    with pytest.raises(RunFault, match=rf'^{words.format(image)}.*--resume$'):
        runner.train()
    assert_resumable(tmp_path / 'work', 'epoch_2.pth')


def test_what_killed_runs_left_is_removed(make_runner, tmp_path):
    (tmp_path / 'work').mkdir()
    stale = tmp_path / 'work' / '.tmp-123-epoch_3.pth'
    stale.write_bytes(b'PK')
    make_runner(resume=True).train()
    assert not stale.exists()
    assert_resumable(tmp_path / 'work', 'epoch_4.pth')


def flip_weight(content):
    """Change one byte of the largest entry, which holds weights; its length stays."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


DAMAGE = {
    'truncated': lambda content: content[:-100],
    'header alone': lambda content: content[:64],
    'empty': lambda content: b'',
    'zeros': lambda content: bytes(len(content)),
    'changed': flip_weight,
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Data set and config, and the work directory of a training of 8 epochs."""
    folder = tmp_path_factory.mktemp('trained')
    toy.write_data_set(folder)
    work_dir = folder / 'work'
    toy.train(toy.write_config(folder), '--work-dir', work_dir)
    return folder, work_dir


@pytest.fixture
def work_dir(trained, tmp_path):
    """A copy of it, with a pointer to its own last checkpoint."""
    copy = tmp_path / 'copy'
    shutil.copytree(trained[1], copy)
    (copy / 'last_checkpoint').write_text(str(copy / 'epoch_8.pth'))
    return copy


@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_last_checkpoint_is_passed_over(kind, work_dir):
    last = work_dir / 'epoch_8.pth'
    assert find_resumable(work_dir) == (last, {})
    last.write_bytes(DAMAGE[kind](last.read_bytes()))
    path, damage = find_resumable(work_dir)
    assert path == work_dir / 'epoch_7.pth'
    assert list(damage) == [str(last)]


@pytest.mark.parametrize('pointer', [None, '', '/gone/epoch_8.pth', '\0\0\0'])
def test_lost_pointer(pointer, work_dir):
    file = work_dir / 'last_checkpoint'
    file.unlink()
    if pointer is not None:
        file.write_text(pointer)
    assert find_resumable(work_dir)[0] == work_dir / 'epoch_8.pth'


def test_no_intact_checkpoint(work_dir):
    for path in work_dir.glob('epoch_*.pth'):
        path.write_bytes(b'')
    with pytest.raises(
        RunFault, match=r'epoch_8\.pth \(empty\), .*epoch_7\.pth \(empty\), .*--res'
    ):
        find_resumable(work_dir)


def test_resumes_from_the_intact_checkpoint_and_says_so(trained, work_dir):
    last = work_dir / 'epoch_8.pth'
    last.write_bytes(last.read_bytes()[:-100])
    log = toy.train(trained[0] / 'toy_config.py', '--work-dir', work_dir, '--resume')
    assert f'damaged: {last} (not written completely). Going on from ' in log
    assert f'{work_dir}/epoch_7.pth, the latest checkpoint that is intact' in log
    assert 'Epoch(train) [8][4/4]' in log
    assert 'Epoch(train) [7]' not in log
    assert_resumable(work_dir, 'epoch_8.pth')


@pytest.mark.parametrize('part', ['state_dict', 'ema_state_dict', 'optimizer'])
def test_nan_in_a_checkpoint_is_named(part, make_runner, work_dir):
    path = work_dir / 'epoch_8.pth'
    checkpoint = read_checkpoint(path)
    name, tensors = {
        'state_dict': ('backbone.0.weight', checkpoint['state_dict']),
        'ema_state_dict': ('module.backbone.0.weight', checkpoint['ema_state_dict']),
        'optimizer': ('state.0.exp_avg', checkpoint['optimizer']['state'][0]),
    }[part]
    tensors[name.removeprefix('state.0.')][3, 0, 0, 0] = float('nan')
    torch.save(checkpoint, path)
    for options in [dict(resume=True)] + [{}] * (part == 'state_dict'):
        runner = make_runner(load_from=str(path), **options)
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        with pytest.raises(ValueError, match=rf'NaN or infinite .*{part}\.{name}[:,]'):
            runner.load_or_resume()


@METRICS.register_module()
class RisingMetric(BaseMetric):
    """Each evaluation is better than the one before."""

    default_prefix = 'rising'
    count = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        type(self).count += 1
        return dict(value=self.count)


def test_best_checkpoint_exists_at_any_moment(make_runner, tmp_path, around_changes_of_names):
    """That which the checkpoint to resume from names, while it is replaced in every epoch.

    A training that has ended keeps the new one alone, which it found after the last checkpoint.
    """
    work_dir = tmp_path / 'work'
    names = [f'best_rising_value_epoch_{epoch}.pth' for epoch in (1, 2, 3, 4)]
    named = []

    def check():
        pointer = work_dir / 'last_checkpoint'
        if pointer.exists():
            hub = read_checkpoint(pointer.read_text())['message_hub']
            best = hub['runtime_info'].get('best_ckpt')
            named.append(best)
            assert best is None or Path(best).exists() or (work_dir / names[-1]).exists()

    around_changes_of_names(check)
    runner = make_runner(
        **{
            'train_cfg.val_interval': 1,
            'default_hooks.checkpoint.save_best': 'rising/value',
            'val_evaluator': dict(_delete_=True, type='RisingMetric'),
        }
    )
    runner.train()
    assert {Path(path).name for path in named if path} == {*names[:-1]}
    assert [path.name for path in work_dir.glob('best_rising_*')] == names[-1:]


def test_outdated_checkpoints_of_a_killed_run_are_removed(make_runner, tmp_path, monkeypatch):
    """Killed after the pointer was replaced, and before the outdated checkpoint was removed."""

    def killed(path):
        raise KeyboardInterrupt

    options = {'default_hooks.checkpoint.max_keep_ckpts': 1}
    with monkeypatch.context() as patch:
        patch.setattr(os, 'remove', killed)
        with pytest.raises(KeyboardInterrupt):
            make_runner(**options).train()
    folder = tmp_path / 'work'
    assert sorted(path.name for path in folder.glob('epoch_*')) == ['epoch_1.pth', 'epoch_2.pth']
    make_runner(resume=True, **options).train()
    assert [path.name for path in folder.glob('epoch_*')] == ['epoch_4.pth']


def in_own_mounts(script, folder):
    """Run a shell script that mounts something; skips where that isn't allowed."""
    probe = ['unshare', '--mount', 'mount', '-t', 'tmpfs', 'tmpfs', str(folder)]
    if shutil.which('unshare') is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip('mounting is not allowed here')
    env = toy.environment()
    command = ['unshare', '--mount', 'sh', '-ec', script]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True)


def test_on_a_disk_that_is_full_and_one_that_is_read_only(trained, tmp_path):
    """Mounted for the purpose; with more space the training goes on to the same end."""
    folder, whole = trained
    work_dir = tmp_path / 'disk'
    work_dir.mkdir()
    size = (whole / 'epoch_8.pth').stat().st_size
    tool = (
        f'{sys.executable} {toy.ROOT}/tools/train.py {folder}/toy_config.py --work-dir {work_dir}'
    )
    script = f"""
        mount -t tmpfs -o size={5 * size} tmpfs {work_dir}
        ! {tool} > {tmp_path}/full.txt 2>&1
        ls -A {work_dir} > {tmp_path}/left.txt
        mount -o remount,size=64m {work_dir}
        {tool} --resume
        cp {work_dir}/epoch_8.pth {tmp_path}
        mount -o remount,ro {work_dir}
        ! {tool} > {tmp_path}/read_only.txt 2>&1
    """
    in_own_mounts(script, work_dir)
    full, left, read_only = (
        (tmp_path / name).read_text() for name in ('full.txt', 'left.txt', 'read_only.txt')
    )
    assert re.search(r'^RunFault: .*No space left on device.*MB are free.*--resume$', full, re.M)
    assert re.search(r'^RunFault: cannot write to .*Read-only file system', read_only, re.M)
    assert 'Traceback' not in full + read_only
    assert re.search(r'epoch_\d\.pth', left)
    assert '.tmp-' not in left
    weights = [read_checkpoint(path / 'epoch_8.pth')['state_dict'] for path in (whole, tmp_path)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
