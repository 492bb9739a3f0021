import fcntl
import json
import sys
import time

from deim_mmdet.engine.history import Evaluation, read_evaluations, write_evaluations

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def tool(load_tool, monkeypatch):
    """The script; its ``study_runs`` has what it runs."""
    module = load_tool('analysis/convergence_study.py')
    monkeypatch.setattr(module, 'POLL_SECONDS', 0.02)
    return module


def write_scalars(work_dir, epochs, evaluated, per_epoch=10):
    folder = work_dir / '20250101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    lines = [
        dict(loss=2.0, time=0.5, epoch=1 + (step - 1) // per_epoch, iter=step, step=step)
        for step in range(5, epochs * per_epoch + 1, 5)
    ]
    lines += [{'coco/bbox_mAP': 0.1 * e, 'coco/bbox_mAP_50': 0.2 * e, 'step': e} for e in evaluated]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))


def test_commands_run_side_by_side_and_a_failure_stops_no_other(tool, tmp_path):
    def command(code):
        return [sys.executable, '-c', f'import time; {code}']

    commands = {
        'slow': command('time.sleep(1); print("slow ran")'),
        'bad': command('raise SystemExit("broken")'),
        'last': command('print("last ran")'),
    }
    seen = []
    failed = tool.run_all(
        commands,
        lambda name: tmp_path / name / 'output.log',
        2,
        lambda running, waiting: seen.append((running, list(waiting))),
    )
    assert failed == ['bad']
    assert seen[0] == (['slow', 'bad'], ['last'])
    outputs = {name: (tmp_path / name / 'output.log').read_text() for name in commands}
    assert outputs['slow'] == 'slow ran\n'
    assert 'broken' in outputs['bad']
    assert outputs['last'] == 'last ran\n'


def test_stopped_it_ends_what_it_started(tool, tmp_path):
    alive = tmp_path / 'alive'
    code = (
        f'import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(.02)'
    )

    def stop(running, waiting):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tool.run_all(
            {'endless': [sys.executable, '-c', code]}, lambda name: tmp_path / name, 1, stop
        )
    alive.unlink(missing_ok=True)
    time.sleep(0.2)
    assert not alive.exists()


def test_two_studies_do_not_train_the_same_runs(tool, tmp_path):
    with (tmp_path / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match=rf'another study.*{tmp_path}'):
            tool.train([], tmp_path, 1)
    tool.train([], tmp_path, 1)


def test_weights_to_start_from_are_trained_first(tool, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(tool, 'make_data', lambda runs, *_: calls.append([r.folder for r in runs]))
    monkeypatch.setattr(tool, 'run_all', lambda commands, *_: calls.append(list(commands)) or [])
    runs = tool.study_runs.plan_starts([0], 'digits1k')
    chosen = [run for run in runs if run.name.startswith('bccd50_brief_deim')]
    names = ['bccd50_brief_deim_digits1k_seed0', 'bccd50_brief_deim_digits1k_frozen_seed0']
    names += ['bccd50_brief_deim_seed0']
    tool.train(chosen, tmp_path, 1)
    assert calls == [['crowded', *['bccd'] * 3], ['crowded1k_deim_seed0'], names]
    # Once they are there, they are kept.
    write_scalars(tmp_path / 'crowded1k_deim_seed0', 4, [4], per_epoch=125)
    tool.train(chosen, tmp_path, 1)
    assert calls[-2:] == [[], names]


def test_progress_and_time_left(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool.study_runs, 'DATA', {'some': tool.study_runs.Data(10)})
    run = tool.Run('half', 'a.py', 4, 1, 0, 'some')
    other = tool.Run('not_begun', 'b.py', 2, 1, 0, 'some')
    assert tool.progress(run, tmp_path) == (0.0, 0.0)
    write_scalars(tmp_path / 'half', 2, [1, 2])
    done = {r.name: tool.progress(r, tmp_path) for r in (run, other)}
    assert done['half'] == (0.5, 0.5)
    # 20 iterations of each; of the other nothing is known but the first one's pace.
    assert tool.seconds_left([run, other], done) == pytest.approx(20)
    # All iterations, but the last evaluation isn't there: not finished.
    write_scalars(tmp_path / 'all', 4, [1, 2, 3])
    assert tool.progress(tool.Run('all', 'a.py', 4, 1, 0, 'some'), tmp_path)[0] < 1
    write_scalars(tmp_path / 'finished', 4, [4])
    assert tool.progress(tool.Run('finished', 'a.py', 4, 1, 0, 'some'), tmp_path)[0] == 1


def test_records_hold_curve_and_settings(tool, tmp_path):
    run = tool.Run('some_seed3', 'study_bccd_deim.py', 4, 1, 3, 'bccd')
    assert not tool.write_record(run, tmp_path, tmp_path / 'records')
    write_scalars(tmp_path / run.name, 3, [2, 3])
    assert tool.write_record(run, tmp_path, tmp_path / 'records')
    evaluations = read_evaluations(tmp_path / 'records/some_seed3.csv')
    assert [(line.epoch, line.iteration) for line in evaluations] == [(2, 20), (3, 30)]
    settings = json.loads((tmp_path / 'records/some_seed3.json').read_text())
    assert settings['seed'] == 3
    assert settings['config'] == 'configs/convergence/study_bccd_deim.py'
    assert (settings['epochs'], settings['evaluated epochs']) == (4, 3)
    assert settings['iterations an epoch'] == 10


def test_records_say_where_a_run_started(tool, tmp_path):
    runs = {run.name: run for run in tool.study_runs.plan_starts([0], 'digits1k')}
    for name, expected in {
        'bccd50_brief_mal_seed0': {'training images': 'the first 50'},
        'bccd_brief_deim_digits1k_frozen_seed0': {
            'weights to start from': 'crowded1k_deim_seed0',
            'model.backbone.frozen_stages': 4,
        },
    }.items():
        write_scalars(tmp_path / name, 2, [2])
        assert tool.write_record(runs[name], tmp_path, tmp_path / 'records')
        settings = json.loads((tmp_path / f'records/{name}.json').read_text())
        further = dict(list(settings.items())[7:])
        assert further == expected


def test_records_are_grouped_by_data_and_budget(tool, tmp_path):
    names = [
        *('sparse_short_baseline_seed0', 'sparse_short_deim_seed0', 'sparse_short_deim_seed1'),
        *('sparse_long_mal_seed0', 'reference_dfine_n', 'bccd_reproduction_dfine_n_seed2'),
        *('bccd_short_mal_seed0', 'bccd50_brief_mal_seed0', 'bccd50_brief_mal_digits1k_seed0'),
    ]
    for name in names:
        write_evaluations([Evaluation(1, 10, 1.0, 0.5, 0.7)], tmp_path / f'{name}.csv')
    grouped = {
        name: {variant: [path.stem for path in paths] for variant, paths in variants.items()}
        for name, variants in tool.comparisons(tmp_path).items()
    }
    assert grouped == {
        'sparse_short': {'baseline': names[:1], 'deim': names[1:3]},
        'sparse_long': {'mal': names[3:4]},
        'bccd_short': {'mal': names[6:7]},
        'bccd_reproduction': {'dfine_n, reference': names[4:5], 'dfine_n, ours': names[5:6]},
        'starts_bccd50_brief': {'mal': names[7:8], 'mal, digits1k': names[8:]},
    }


def test_a_study_is_run_once_and_leaves_records_and_plot(tool, tmp_path, monkeypatch, capfd):
    pytest.importorskip('sklearn')
    digits = '--train 16 --val 4 --size 64 --digits 0 2 3 4 --objects 1 3'
    study = tool.study_runs
    monkeypatch.setattr(study, 'DATA', {'sparse': study.Data(2, digits)})
    monkeypatch.setattr(study, 'BUDGETS', {'short': 8})
    monkeypatch.setattr(study, 'ITERS_BETWEEN', 2)
    monkeypatch.setattr(study, 'VARIANTS', ('deim',))
    monkeypatch.setattr(study, 'REPRODUCED', ())
    root, records = tmp_path / 'study', tmp_path / 'records'
    arguments = ['--root', str(root), '--jobs', '1', '--records', str(records)]
    monkeypatch.setattr('sys.argv', ['convergence_study.py', *arguments])
    for _ in range(2):  # the second time there is nothing left to do
        tool.main()
        name = 'sparse_short_deim_seed0'
        assert len(list((root / name).glob('*/vis_data/scalars.json'))) == 1
        assert [line.iteration for line in read_evaluations(records / f'{name}.csv')] == [
            2,
            4,
            6,
            8,
        ]
        settings = json.loads((records / f'{name}.json').read_text())
        assert settings['stages'] == [1, 2, 3]
        assert (records / 'comparison_sparse_short.png').stat().st_size > 1000
    assert f'{name} is finished' in capfd.readouterr().out


def test_unknown_names_are_told(tool, monkeypatch):
    monkeypatch.setattr('sys.argv', ['convergence_study.py', '--only', 'nothing', '--list'])
    with pytest.raises(SystemExit, match='nothing'):
        tool.main()
