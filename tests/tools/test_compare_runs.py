import csv

from deim_mmdet.engine.history import Evaluation, write_evaluations

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis/compare_runs.py')


def record(folder, name, ap, per_epoch=10, interval=1):
    path = folder / f'{name}.csv'
    write_evaluations(
        [
            Evaluation(interval * e, interval * e * per_epoch, 1.0, value, 2 * value)
            for e, value in enumerate(ap, 1)
        ],
        path,
    )
    return path


def run_main(tool, monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['compare_runs.py', *map(str, arguments)])
    tool.main()


def test_table_tells_who_reaches_the_baselines_end_and_when(tool, tmp_path, monkeypatch, capsys):
    slow = record(tmp_path, 'slow', [0.0, 0.1, 0.2, 0.3])
    # Half as many iterations an epoch; passes 0.3 at the fourth of six epochs and falls again.
    fast = record(tmp_path, 'fast', [0.1, 0.2, 0.25, 0.35, 0.32, 0.29], per_epoch=5)
    never = record(tmp_path, 'never', [0.0, 0.1])
    out = tmp_path / 'out' / 'comparison.png'
    run_main(tool, monkeypatch, fast, slow, never, '--baseline', 'slow', '--out', out)
    with open(out.with_suffix('.csv'), newline='') as file:
        rows = {row['']: row for row in csv.DictReader(file)}
    reached = {
        name: (row['epochs to AP 0.300'], row['iterations to AP 0.300'])
        for name, row in rows.items()
    }
    assert reached == {'fast': ('4', '20'), 'slow': ('4', '40'), 'never': ('-', '-')}
    assert (rows['fast']['final AP'], rows['fast']['best AP']) == ('0.290', '0.350')
    text = capsys.readouterr().out
    assert all(value in text for row in rows.values() for value in row.values())
    assert cv2.imread(str(out)).std() > 0


def test_a_group_is_its_mean_over_common_epochs(tool, tmp_path):
    first = record(tmp_path, 'a', [0.1, 0.3, 0.5])
    second = record(tmp_path, 'b', [0.3, 0.4])
    every_other = record(tmp_path, 'c', [0.6], interval=2)
    (curve,) = tool.read_curves([f'both={first},{second},{every_other}'])
    assert curve.epochs.tolist() == [2]
    assert curve.iterations.tolist() == [20]
    np.testing.assert_allclose(curve.ap, [[0.3], [0.4], [0.6]])
    (curve,) = tool.read_curves([f'both={first},{second}'])
    np.testing.assert_allclose(curve.mean, [0.2, 0.35])
    assert curve.reaches(0.2) == 0
    assert curve.reaches(0.25) == 1
    assert curve.reaches(0.4) is None
    final = tool.compare([curve], curve)[1]
    assert final[4:6] == ['0.350', '0.300–0.400']


def test_the_plot_shows_every_run(tool, tmp_path):
    curves = tool.read_curves(
        [str(record(tmp_path, name, [k / 10, k / 5])) for k, name in enumerate('abc', 1)]
    )
    figure = tool.draw(curves, curves[0], 'Title')
    for axes, unit in zip(figure.axes, ('epochs', 'iterations'), strict=True):
        assert axes.get_xlabel() == unit
        lines = axes.get_lines()[:3]
        for curve, line in zip(curves, lines, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), getattr(curve, unit))
            np.testing.assert_array_equal(line.get_ydata(), curve.ap[0])


def test_what_is_wrong_is_named(tool, tmp_path, monkeypatch):
    good = record(tmp_path, 'good', [0.1])
    other = record(tmp_path, 'other', [0.1], per_epoch=7)
    late = record(tmp_path, 'late', [0.1], interval=3)
    for arguments, words in (
        ([tmp_path / 'absent'], 'absent'),
        ([f'x={good},'], 'NAME='),
        ([good, good], 'good: two groups'),
        ([f'x={good},{other}'], 'x: .*iterations of an epoch'),
        ([f'x={good},{late}'], 'x: .*no evaluated epoch in common'),
        ([good, '--baseline', 'b'], '--baseline b.*good'),
        ([good, '--out', tmp_path / 'plot.xyz'], r'plot\.xyz.*suffix'),
    ):
        with pytest.raises(SystemExit, match=words):
            run_main(tool, monkeypatch, *arguments)
