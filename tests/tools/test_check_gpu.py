"""The check of a machine with a GPU, as far as it goes without one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture
def tool(load_tool, repo_root, monkeypatch):
    monkeypatch.syspath_prepend(repo_root / 'tools/dev')
    return load_tool('dev/check_gpu.py')


def test_a_step_that_fails_crashes_or_hangs_ends_no_other(tool, tmp_path, monkeypatch):
    codes = dict(
        fails='print("this is why"); raise SystemExit(3)',
        crashes='import os; os.abort()',
        # As torchrun starts its processes.
        hangs='import subprocess, time; other = subprocess.Popen(["sleep", "60"], '
        'start_new_session=True); print(other.pid, flush=True); time.sleep(60)',
        works='print("{not JSON}"); print("""{"ms": 3}""")',
    )

    def broken(settings):
        for name, code in codes.items():
            yield tool.Step(name, [sys.executable, '-c', code], 1 if name == 'hangs' else 60)

    monkeypatch.setitem(tool.PARTS, 'broken', broken)
    settings = tool.Settings('cpu', tmp_path)
    rows = tool.check(['broken'], settings, minutes=5)
    assert [row['result'] for row in rows] == ['failed', 'crashed', 'took too long', 'passed']
    assert rows[0]['message'] == 'this is why'
    assert 'SIGABRT' in rows[1]['message']
    assert rows[2]['seconds'] < 50
    started = int(rows[2]['message'].split()[-1])
    assert not running(started)
    assert rows[0]['output'] == ['this is why']
    assert rows[3]['figures'] == [{'ms': 3}]
    assert json.loads((tmp_path / 'results.json').read_text()) == rows
    table = tool.table(rows)
    lines = [line for line in table.splitlines() if line.startswith('|')]
    assert len(lines) == 2 + len(codes)
    assert len({line.count('|') for line in lines}) == 1
    assert '`{"ms": 3}`' in table
    late = tool.check(['broken'], settings, minutes=0)
    assert {row['result'] for row in late} == {'left out'}


def running(process):
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f'/proc/{process}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def test_a_step_takes_no_time_from_later_ones(tool, tmp_path, monkeypatch):
    def two(settings):
        for name, seconds in (('slow', 60), ('later', 0)):
            command = [sys.executable, '-c', f'import time; time.sleep({seconds})']
            yield tool.Step(name, command, share=30)

    monkeypatch.setitem(tool.PARTS, 'two', two)
    slow, later = tool.check(['two'], tool.Settings('cuda', tmp_path), minutes=0.1)
    assert (slow['result'], later['result']) == ('took too long', 'passed')
    assert slow['message'].startswith('ended after 3 s')


def test_checks_run_side_by_side_between_what_they_need_and_what_is_timed(
    tool, tmp_path, monkeypatch
):
    monkeypatch.setattr(tool.os, 'sched_getaffinity', lambda _: range(4))
    log, both = tmp_path / 'log', tmp_path / 'both'
    both.mkdir()

    def command(name, wait=False):
        # A check ends when the other one has begun.
        code = (
            f'import os, pathlib, time; pathlib.Path({str(both)!r}, {name!r}).touch()\n'
            f'while {wait} and len(os.listdir({str(both)!r})) < 3: time.sleep(0.01)\n'
            f'open({str(log)!r}, "a").write({name!r} + os.environ.get("OMP_NUM_THREADS", "") + " ")'
        )
        return [sys.executable, '-c', code]

    def part(settings):
        kinds = tool.Kind
        yield tool.Step('timed', command('timed'), 20, kinds.MEASURES)
        yield tool.Step('one', command('one', wait=True), 20, kinds.CHECKS)
        yield tool.Step('other', command('other', wait=True), 20, kinds.CHECKS)
        yield tool.Step('made', command('made'), 20, kinds.MAKES)

    monkeypatch.setitem(tool.PARTS, 'part', part)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    rows = tool.check(['part'], tool.Settings('cuda', tmp_path), minutes=1)
    assert [row['step'] for row in rows] == ['timed', 'one', 'other', 'made']
    assert {row['result'] for row in rows} == {'passed'}
    made, *checks, timed = log.read_text().split()
    assert (made, timed) == ('made', 'timed')
    assert sorted(checks) == ['one2', 'other2']


@pytest.fixture
def interruptible():
    """Processes of pytest-xdist ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_check_ends_at_once(tool, tmp_path, monkeypatch, interruptible):
    def part(settings):
        for name in 'abc':
            command = [sys.executable, '-c', 'import time; time.sleep(60)']
            yield tool.Step(name, command, 60, tool.Kind.CHECKS)

    monkeypatch.setitem(tool.PARTS, 'part', part)
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tool.check(['part'], tool.Settings('cuda', tmp_path), minutes=5)
    assert time.monotonic() - started < 30
    assert not [
        process
        for process in Path('/proc').glob('[0-9]*')
        if running(process.name) and tool.MARK in environment_of(process)
    ]


def environment_of(process):
    try:
        return (process / 'environ').read_text(errors='replace')
    except OSError:
        return ''


def test_all_steps_fit_into_seven_minutes(tool, tmp_path):
    """On a machine with 16 cores, where eight checks run side by side."""
    settings = tool.Settings('cuda', tmp_path)
    shares = {kind: [] for kind in tool.Kind}
    for part in tool.PARTS.values():
        for step in part(settings):
            shares[step.kind].append(step.share)
    checks = shares.pop(tool.Kind.CHECKS)
    assert max(*checks, sum(checks) / 8) + sum(map(sum, shares.values())) <= 7 * 60


def test_every_step_names_a_file_of_the_checkout(tool, tmp_path, repo_root):
    for device in ('cpu', 'cuda'):
        settings = tool.Settings(device, tmp_path)
        steps = [step for part in tool.PARTS.values() for step in part(settings)]
        assert len({(step.name, *step.command) for step in steps}) == len(steps)
        for step in steps:
            scripts = [word for word in step.command if word.endswith('.py')]
            assert scripts
            assert all((repo_root / script).is_file() for script in scripts)


@pytest.fixture
def refused(tool, tmp_path, monkeypatch, capsys):
    """Function: the message with which the check ends at once, given these arguments."""

    def refused(*arguments):
        monkeypatch.setattr(tool, 'check', lambda *_: pytest.fail('a part was started'))
        command = ['check_gpu.py', *map(str, arguments), '--out', str(tmp_path / 'out')]
        monkeypatch.setattr(sys, 'argv', command)
        with pytest.raises(SystemExit) as end:
            tool.main()
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return refused


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_no_part_is_started(refused):
    message = refused()
    assert '--device cuda: torch finds no GPU (' in message
    assert message.endswith('--device cpu tries all parts without')


def test_wheels_that_are_not_there(refused, tmp_path):
    absent, broken = tmp_path / 'absent', tmp_path / 'wheels'
    broken.mkdir()
    assert refused('--device', 'cpu', '--wheels', absent).endswith(f'{absent}: no such folder')
    assert 'there is no wheel (*.whl) in it' in refused('--device', 'cpu', '--wheels', broken)
    (broken / 'made_up-1.0-py3-none-any.whl').write_text('no archive')
    assert 'made_up' in refused('--device', 'cpu', '--wheels', broken)


def test_mixed_precision_and_reads_without_a_gpu(tmp_path, repo_root):
    done = subprocess.run(
        [
            *('bash', repo_root / 'tools/dev/check_gpu.sh', 'precision', 'reads'),
            *('--device', 'cpu', '--out', tmp_path, '--minutes', '10'),
        ],
        env=os.environ | dict(PYTHON=sys.executable),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / 'results.json').read_text())
    assert [row['part'] for row in rows] == ['precision', 'reads']
    errors = {
        figures['type']: figures['ours'] for figures in rows[0]['figures'] if 'type' in figures
    }
    single, half, wide = (errors[f'torch.{name}'] for name in ('float32', 'float16', 'bfloat16'))
    assert single.keys() == {'losses', 'backbone', 'neck', 'head'}
    for what, error in single.items():
        assert error < 0.01 * half[what] < 0.01 * wide[what]
    assert done.stdout.count('| passed |') == 2
