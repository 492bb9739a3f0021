import os

from deim_mmdet.checkpoints import files

import pytest
import torch
from test_safe_globals import RunsCode


def test_downloads_once_and_apart_from_files_of_the_same_name(file_server, hub_folder):
    address, folder, requests = file_server
    for name in 'ab':
        (folder / name).mkdir()
        torch.save(dict(name=name), folder / name / 'model.pth')
    for _ in range(2):
        for name in 'ab':
            assert files.read_checkpoint(f'{address}/{name}/model.pth') == dict(name=name)
    assert sorted(requests) == ['/a/model.pth', '/b/model.pth']


def test_a_name_after_the_query_is_for_the_file_only(file_server, hub_folder):
    address, folder, requests = file_server
    torch.save(dict(), folder / 'download')
    path = files.download(f'{address}/download?id=7#/deim_dfine_n.pth')
    assert path.name.endswith('-deim_dfine_n.pth')
    assert requests == ['/download?id=7']


def test_https_is_downloaded_as_well(hub_folder, monkeypatch):
    def fetch(url, target, progress):
        assert url == 'https://host/x/w.pth'
        torch.save(dict(w=1), target)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    assert files.read_checkpoint('https://host/x/w.pth') == dict(w=1)


def test_failed_downloads_name_the_address_and_leave_nothing(file_server, hub_folder):
    address, folder, _ = file_server
    with pytest.raises(RuntimeError, match=r'none\.pth cannot be downloaded \(.*404.*path'):
        files.read_checkpoint(f'{address}/none.pth')
    (folder / 'page.pth').write_text('\n<!DOCTYPE html><html>Quota exceeded</html>')
    with pytest.raises(RuntimeError, match=r'page\.pth gave a web page'):
        files.read_checkpoint(f'{address}/page.pth')
    assert list((hub_folder / 'checkpoints').iterdir()) == []


@pytest.mark.parametrize(
    ('address', 'name'),
    [
        ('work_dirs/a/epoch_3.pth', 'epoch_3.pth'),
        ('https://host/path/w.pth?raw=true', 'w.pth'),
        ('https://host/download?id=1&confirm=t#/deim.pth', 'deim.pth'),
    ],
)
def test_file_name(address, name):
    assert files.file_name(address) == name


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path):
    path, trap = tmp_path / 'evil.pth', tmp_path / 'created'
    torch.save(dict(model=RunsCode(trap)), path)
    with pytest.raises(RuntimeError, match=r'evil\.pth .*mkdir.* refused'):
        files.read_checkpoint(path)
    assert not trap.exists()


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / 'cut.pth'
    torch.save(dict(w=torch.ones(1000)), path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(RuntimeError, match=r'cut\.pth is damaged or was not written completely'):
        files.read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r'there is no checkpoint .*none\.pth'):
        files.read_checkpoint(tmp_path / 'none.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(RuntimeError, match=r'list\.pth holds a list, not a checkpoint'):
        files.read_checkpoint(tmp_path / 'list.pth')


def test_safetensors_files_and_folders(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'model.safetensors'
    safetensors.save_file(dict(w=torch.arange(100.0)), path)
    for source in (path, tmp_path):
        assert torch.equal(files.read_checkpoint(source)['w'], torch.arange(100.0))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RuntimeError, match=r'model\.safetensors is damaged'):
        files.read_checkpoint(path)


def test_interrupted_writing_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / 'folder' / 'out.pth'
    files.write_checkpoint(dict(version=1), path)

    def crash(source, target):
        assert torch.load(source) == dict(version=2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', crash)
        with pytest.raises(KeyboardInterrupt):
            files.write_checkpoint(dict(version=2), path)
    assert files.read_checkpoint(path) == dict(version=1)
    assert [file.name for file in path.parent.iterdir()] == ['out.pth']
