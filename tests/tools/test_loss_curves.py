from deim_mmdet.models.losses import MatchabilityAwareLoss, VarifocalQualityLoss

import cv2
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

PROBABILITIES = np.linspace(0.01, 0.99, 99)


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis/loss_curves.py')


def curve(tool, loss, iou):
    return tool.loss_curve(loss(reduction='none'), torch.tensor(PROBABILITIES), iou).numpy()


@pytest.mark.parametrize('iou', [0.05, 0.5, 0.95])
def test_curves_are_the_papers_equations(tool, iou):
    p, q = PROBABILITIES, iou
    vfl = -q * (q * np.log(p) + (1 - q) * np.log(1 - p))
    mal = -(q**1.5) * np.log(p) - (1 - q**1.5) * np.log(1 - p)
    np.testing.assert_allclose(curve(tool, VarifocalQualityLoss, iou), vfl, rtol=1e-9)
    np.testing.assert_allclose(curve(tool, MatchabilityAwareLoss, iou), mal, rtol=1e-9)


def test_figure_shows_both_losses_for_each_iou(tool):
    figure = tool.draw_curves([0.05, 0.95], [1.0, 1.5])
    for axes, iou in zip(figure.axes, (0.05, 0.95), strict=True):
        drawn = {line.get_label(): line for line in axes.get_lines()}
        assert list(drawn) == ['VFL', 'MAL, γ = 1', 'MAL, γ = 1.5']
        # Each is least at its target: VFL and MAL with γ = 1 at the IoU, MAL with γ = 1.5 lower.
        for name, target in (('VFL', iou), ('MAL, γ = 1', iou), ('MAL, γ = 1.5', iou**1.5)):
            x, y = drawn[name].get_xdata(), drawn[name].get_ydata()
            assert float(x[np.argmin(y)]) == pytest.approx(target, abs=2e-3)


def test_command_writes_the_image(tool, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'new' / 'curves.png'
    monkeypatch.setattr('sys.argv', ['loss_curves.py', '--iou', '0.3', '--out', str(out)])
    tool.main()
    assert capsys.readouterr().out.strip() == str(out)
    assert cv2.imread(str(out)).std() > 0
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--iou', '1.2'], '--iou'),
        (['--gamma', '0'], '--gamma'),
        (['--out', 'curves.jpeq'], r'curves\.jpeq'),
    ],
)
def test_what_cannot_be_drawn_is_named(tool, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['loss_curves.py', *arguments])
    with pytest.raises(SystemExit, match=message):
        tool.main()
    assert not list(tmp_path.iterdir())
