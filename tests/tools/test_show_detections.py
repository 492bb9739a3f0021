import pytest

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
