"""Scripts that compare training with other implementations, on inputs that are small."""

import json
import sys

import criterion
import pytest
import torch
import training_step
from measuring.losses import figures, time_losses
from measuring.timing import make_timer

pytestmark = pytest.mark.slow


def test_criterion(monkeypatch, tmp_path):
    monkeypatch.setattr(criterion, 'BATCH', 1)
    monkeypatch.setattr(criterion, 'QUERIES', 20)
    out = tmp_path / 'rows.json'
    arguments = ['--objects', '3', '--repeats', '1', '--threads', '1', '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', ['criterion.py', *arguments])
    criterion.main()
    rows = json.loads(out.read_text())
    assert [(row['head'], row['objects']) for row in rows] == [('D-FINE', 3), ('RT-DETRv2', 3)]
    assert all(row['forward_ours_ms'] <= row['with_backward_ours_ms'] for row in rows)
    assert all(row['with_backward_ratio_to_plain'] > 0 for row in rows)


@pytest.mark.parametrize('script', [criterion, training_step])
def test_a_missing_gpu_is_named(script, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(sys, 'argv', ['script.py', '--device', 'cuda'])
    with pytest.raises(SystemExit):
        script.main()
    assert '--device cuda: torch finds no GPU' in capsys.readouterr().err


def test_training_step_without_the_others(monkeypatch, capsys):
    reasons = dict(reference='not installed', transformers='OSError: broken')
    monkeypatch.setattr(training_step, 'reason_against', reasons.get)
    monkeypatch.setitem(training_step.SIZES['cpu'], 'dfine_n', (1, 192))
    # The memory is measured in another process, with images of the usual size.
    monkeypatch.setattr(training_step.subprocess, 'check_output', lambda *_, **__: '5')
    arguments = ['--models', 'dfine_n', '--repeats', '1', '--threads', '1']
    monkeypatch.setattr(sys, 'argv', ['training_step.py', *arguments])
    training_step.main()
    first, row = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == dict(left_out=reasons)
    assert row['with_backward_ours_ms'] > 0
    assert not [key for key in row if 'reference' in key or 'transformers' in key]


def test_training_step(monkeypatch):
    pytest.importorskip('dfine')
    pytest.importorskip('transformers')
    # Of the smallest of a side for which the reference has a token for each of its queries.
    monkeypatch.setitem(training_step.SIZES['cpu'], 'dfine_n', (1, 256))
    steps = training_step.build('dfine_n', 'cpu', amp=False)
    losses = {name: step() for name, step in steps.items()}
    # The same weights, images and objects, but for the noise of the denoising queries.
    torch.testing.assert_close(losses['ours'], losses['reference'], rtol=0.3, atol=0)
    row = figures(time_losses(steps, 1, make_timer('cpu')), 'cpu')
    assert row['forward_ours_ms'] <= row['with_backward_ours_ms']
    assert {'forward_ratio_to_reference', 'with_backward_ratio_to_transformers'} < row.keys()
