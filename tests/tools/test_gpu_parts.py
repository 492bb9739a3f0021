"""Steps of the check of a GPU that start other tools."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from measuring.latency import BACKENDS

pytestmark = pytest.mark.slow


@pytest.fixture
def measured(load_tool, tmp_path, monkeypatch, capsys):
    """Function: what the part ``inference`` times on a device, and its lines of JSON."""
    parts, steps = load_tool('dev/gpu_parts.py'), load_tool('dev/gpu_steps.py')
    reasons = dict(tensorrt='tensorrt is not installed', transformers='OSError: broken')
    monkeypatch.setattr('measuring.installed.reason_against', lambda name: reasons.get(name, ''))

    def measured(device, code=0):
        timed = []

        def benchmark(command, **options):
            backends, out = command.index('--backends') + 1, Path(command[-1])
            names = [word for word in command[backends:] if not word.startswith('-')]
            timed.extend((command[2], name) for name in names if name in BACKENDS[device])
            out.mkdir(parents=True)
            (out / 'results.json').write_text('{"results": []}')
            return SimpleNamespace(returncode=code)

        monkeypatch.setattr(parts.subprocess, 'run', benchmark)
        for step in steps.inference(steps.Settings(device, tmp_path / device)):
            monkeypatch.setattr('sys.argv', step.command[1:])
            parts.main()
        return timed, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return measured


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_all_forms_are_measured_or_named(measured, device):
    timed, lines = measured(device)
    assert len(set(timed)) == len(timed)
    left_out = {name: reason for line in lines for name, reason in line.get('left_out', {}).items()}
    assert left_out['transformers'] == 'OSError: broken'
    names = {name for config, name in timed if config == 'configs/dfine_n.py'}
    assert names | left_out.keys() == set(BACKENDS[device])
    assert not names & left_out.keys()
    assert (('configs/dfine_l.py', 'graph') in timed) == (device == 'cuda')
    assert {'results': []} in lines


def test_a_benchmark_that_fails_fails_the_step(measured):
    with pytest.raises(SystemExit) as end:
        measured('cuda', code=3)
    assert end.value.code == 3
