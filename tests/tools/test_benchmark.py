"""The command, in this process, on a small input."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from golden import CONFIGS
from measuring.timing import Timing

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('benchmark.py')


@pytest.fixture
def run(tool, monkeypatch):
    def run(*options):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, options)])
        tool.main()

    return run


def test_tables_and_files(tool, run, tmp_path, capsys):
    run(
        CONFIGS / 'deim_dfine_n.py', '--backends', 'pytorch', 'fused', '--batches', 1, 2,
        '--size', 64, 96, '--rounds', 1, '--out', tmp_path,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert 'deim_dfine_n: 3.78 M parameters' in printed
    assert 'latency, batch 2' in printed
    assert 'criterion' in printed
    written = json.loads((tmp_path / 'results.json').read_text())
    assert written['machine']['threads'] == 1
    (results,) = written['results']
    assert results['size'] == [64, 96]
    assert set(results['latency']['1']) == {'pytorch', 'fused'}
    assert results['latency']['1']['fused']['rounds'] == tool.CALLS
    assert results['training']['total']['median'] > 0
    assert results['pipeline'] == {}
    assert (tmp_path / 'accuracy_latency.png').stat().st_size > 10_000


def test_the_configs_own_size_and_channels(run, tmp_path):
    run(
        CONFIGS / 'deim_dfine_n.py', '--backends', 'pytorch', 'fused', '--rounds', 1,
        '--batches', 1, '--train-batch', 1, '--out', tmp_path, '--cfg-options',
        'image_size=(64,96)', 'model.backbone.in_channels=4', 'model.backbone.init_cfg=None',
        'model.data_preprocessor.mean=[0,0,0,0]', 'model.data_preprocessor.std=[1,1,1,1]',
        'model.data_preprocessor.bgr_to_rgb=False',
    )  # fmt: skip
    (results,) = json.loads((tmp_path / 'results.json').read_text())['results']
    assert results['size'] == [64, 96]
    assert set(results['latency']['1']) == {'pytorch', 'fused'}
    assert results['training']['total']['median'] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_tables_of_a_gpu(run, tmp_path):
    run(
        CONFIGS / 'deim_dfine_n.py', '--device', 'cuda', '--amp', '--rounds', 2,
        '--backends', 'pytorch', 'fused', 'half', 'graph', '--size', 96, 128, '--out', tmp_path,
    )  # fmt: skip
    written = json.loads((tmp_path / 'results.json').read_text())
    assert written['machine']['gpu'] == torch.cuda.get_device_name()
    (results,) = written['results']
    assert set(results['latency']['1']) == {'pytorch', 'fused', 'half', 'graph'}
    assert results['training_host']['total']['median'] > 0
    assert all(memory > 0 for memory in results['memory'].values())


def test_configs_of_one_name_are_told_apart(run, tmp_path, capsys):
    own = tmp_path / 'deim_dfine_n.py'
    own.write_text(f"_base_ = '{CONFIGS / 'deim_dfine_n.py'}'\n")
    run(
        CONFIGS / 'deim_dfine_n.py', own, '--parts', 'latency', '--backends', 'pytorch',
        '--batches', 1, '--size', 64, 64, '--rounds', 1, '--out', tmp_path,
    )  # fmt: skip
    written = json.loads((tmp_path / 'results.json').read_text())
    names = [results['config'] for results in written['results']]
    assert names == [str(CONFIGS / 'deim_dfine_n.py'), str(own)]
    assert f'{own}: 3.78 M parameters' in capsys.readouterr().out


def test_flops_are_the_published_ones(tool):
    flops = tool.count_flops(tool.build(tool.load_config(CONFIGS / 'deim_dfine_m.py')), (640, 640))
    assert flops / 1e9 == pytest.approx(57, rel=0.03)


def test_ratios_are_those_of_the_first_row(tool):
    results = tool.Results('name', (640, 640), 1_000_000, 2e9)
    results.latency[4] = dict(
        transformers=Timing(300.0, 310.0, 320.0, 250.0, 9),
        fused=Timing(100.0, 110.0, 120.0, 50.0, 9),
    )
    header, columns, reference, fused = tool.as_text(results).splitlines()
    assert '1.00 M parameters, 2.0 GFLOPs' in header
    assert columns.endswith('times transformers')
    assert '1.00 (lowest: 1.00)' in reference
    # 4 images in 100 ms.
    assert ' 40.0 ' in fused
    assert '3.00 (lowest: 5.00)' in fused


def test_models_without_a_counterpart_are_measured_without_it(tool, capsys):
    cfg = tool.load_config(CONFIGS / 'deimv2_pico.py')
    asked = SimpleNamespace(chosen=False, backends=['transformers', 'pytorch'])
    assert tool.chosen_backends(cfg, asked) == ['pytorch']
    said = 'transformers is left out: transformers has no model with an HGNetv2 Pico'
    assert capsys.readouterr().err == f'{said}\n'
    asked.chosen = True
    pytest.importorskip('transformers')
    with pytest.raises(ValueError, match='has no model with an HGNetv2 Pico'):
        tool.chosen_backends(cfg, asked)


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setattr('deim_mmdet.deployment.extras.find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'deim_mmdet\[openvino\]'"):
        run(CONFIGS / 'deim_dfine_n.py', '--backends', 'openvino', '--parts', 'latency')


def test_a_package_that_cannot_be_imported_is_left_out(run, tmp_path, monkeypatch, capsys):
    (tmp_path / 'openvino.py').write_text('raise RuntimeError("made for another version")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'openvino', raising=False)
    with pytest.raises(ImportError, match=r'RuntimeError: made for another version'):
        run(CONFIGS / 'deim_dfine_n.py', '--backends', 'openvino', '--parts', 'latency')
    monkeypatch.setattr(
        'deim_mmdet.deployment.extras.find_spec',
        lambda name: name if name == 'openvino' else None,
    )
    run(
        CONFIGS / 'deim_dfine_n.py', '--parts', 'latency', '--size', 64, 64, '--rounds', 1,
        '--out', tmp_path / 'out',
    )  # fmt: skip
    (results,) = json.loads((tmp_path / 'out/results.json').read_text())['results']
    assert set(results['latency']['1']) == {'pytorch', 'fused'}
    lines = capsys.readouterr().err.splitlines()
    assert any('openvino is left out: ' in line and 'another version' in line for line in lines)
    assert any('onnxruntime is left out: ' in line and 'pip install' in line for line in lines)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--rounds', '0'], '--rounds must be at least 1'),
        (['--cpu-time', '--threads', '2'], 'use it with --threads 1'),
        (['--backends', 'graph'], 'with --device cpu there are reference, transformers'),
        (['--device', 'cuda', '--cpu-time'], 'a GPU computes outside of the process'),
        pytest.param(
            ['--device', 'cuda'],
            'torch finds no GPU',
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is one'),
        ),
    ],
)
def test_mistakes_on_the_command_line(run, capsys, options, message):
    with pytest.raises(SystemExit):
        run('config.py', *options)
    assert message in capsys.readouterr().err
