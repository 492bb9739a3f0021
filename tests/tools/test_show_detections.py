import sys

import pytest
from golden import CONFIGS

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis/show_detections.py')


def test_images_are_spread_over_the_folder(tool, tmp_path):
    for i in range(10):
        (tmp_path / f'{i}.jpg').touch()
    (tmp_path / 'notes.txt').touch()
    assert [path.stem for path in tool.find_images(tmp_path, 5)] == ['0', '2', '4', '6', '8']
    assert len(tool.find_images(tmp_path, 99)) == 10


def test_a_folder_without_images_is_named(tool, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        tool.find_images(tmp_path, 5)


def test_mistakes_end_it_with_one_line(tool, tmp_path, monkeypatch):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'a.jpg').touch()
    config = str(CONFIGS / 'deim_dfine_n.py')
    for arguments, said in (
        (('none.py', 'some.pth', 'images'), 'there is no config none.py'),
        ((config, 'some.pth', 'none'), 'there is no folder none'),
        ((config, 'none.pth', 'images'), 'none.pth'),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['show_detections.py', *arguments, '--device', 'cpu'])
        with pytest.raises(SystemExit, match=said) as stop:
            tool.main()
        assert '\n' not in str(stop.value)
