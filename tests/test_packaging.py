"""What an installed package holds, and that MIM finds it, from another directory."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from deim_mmdet.checkpoints.loading import SCHEME
from deim_mmdet.stack import STACKS

import pytest
import schedules
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from packaging.requirements import Requirement
from reference_checkpoints import reference_state_dict

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('deim_mmdet', 'configs', 'tools', 'setup.py', 'pyproject.toml', 'MANIFEST.in')
TEXTS = ('model-index.yml', 'README.md', 'LICENSE')
OTHER_WEIGHTS = re.compile('_obj365|_obj2coco|^rtdetrv4')

# Runs `mim train` up to the point where it would start the script, and tells what it would start.
MIM_TRAIN = """
import json, site, subprocess, sys
if sys.argv[1]:
    site.addsitedir(sys.argv[1])
    sys.path.insert(0, sys.argv[1])
from mim.commands.train import train
commands = []
subprocess.check_output = lambda command, **_: b''
subprocess.check_call = lambda command, **_: commands.append(command) or 0
assert train('deim_mmdet', sys.argv[2], gpus=0) == (True, 'Training finished successfully. ')
print(json.dumps(commands[0]))
"""


def run(*command: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    code = f'from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})'
    # Compiling the operators is the matter of tests/ops/test_build.py.
    run(sys.executable, '-c', code, cwd=source, DEIM_MMDET_WITH_OPS='0')
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy of the checkout, so that building leaves nothing in it."""
    folder = tmp_path_factory.mktemp('source')
    ignore = shutil.ignore_patterns('__pycache__', '.mim', '*.so')
    for name in SOURCES + TEXTS:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=ignore)
        elif path.exists():
            shutil.copy2(path, folder / name)
    return folder


@pytest.fixture(scope='module')
def installed_wheel(source, tmp_path_factory) -> Path:
    """Folder with the wheel installed; built as PyPI's users get it, from the sdist."""
    folder = tmp_path_factory.mktemp('wheel')
    shutil.unpack_archive(build('sdist', source, folder / 'sdist'), folder / 'unpacked')
    (unpacked,) = (folder / 'unpacked').iterdir()
    wheel = build('wheel', unpacked, folder / 'dist')
    options = ('--no-deps', '--no-index', '--no-compile', '--target', str(folder / 'site'))
    run(sys.executable, '-m', 'pip', 'install', '-q', *options, str(wheel), cwd=folder)
    return folder / 'site'


def test_installing_the_package_installs_no_stack_over_another(installed_wheel):
    """pip would write mmcv's files over onedl-mmcv's: only the extras name either."""
    (folder,) = installed_wheel.glob('deim_mmdet-*.dist-info')
    required = [Requirement(line) for line in metadata.PathDistribution(folder).requires]
    stacks = {name: stack for stack, names in STACKS.items() for name in names}
    found = {name: set() for name in STACKS}
    for requirement in required:
        stack = stacks.get(requirement.name)
        if stack is not None:
            assert not requirement.marker.evaluate({'extra': ''})
            assert requirement.marker.evaluate({'extra': stack})
            found[stack].add(requirement.name)
    # With operators MMCV is no wheel: the extra takes the one that is.
    assert found == {stack: {*names} - {'mmcv'} for stack, names in STACKS.items()}
    assert {'torch', 'scipy'} <= {r.name for r in required if r.marker is None}


def published_models() -> list[dict]:
    return yaml.safe_load((ROOT / 'model-index.yml').read_text())['Models']


def files_below(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_wheel_holds_all_configs_tools_and_the_index(installed_wheel):
    package = installed_wheel / 'deim_mmdet'
    for entry in ('configs', 'tools'):
        assert files_below(package / '.mim' / entry) == files_below(ROOT / entry)
    index = (package / '.mim/model-index.yml').read_text()
    assert index == (ROOT / 'model-index.yml').read_text()


def test_wheel_holds_all_modules_and_nothing_beside_the_package(installed_wheel):
    modules = {
        name
        for name in files_below(ROOT / 'deim_mmdet')
        if '.mim/' not in name and not name.endswith('.so')
    }
    installed = files_below(installed_wheel / 'deim_mmdet')
    assert {name for name in installed if not name.startswith('.mim/')} == modules
    assert {path.name.split('-')[0] for path in installed_wheel.iterdir()} == {'deim_mmdet'}


def test_the_benchmark_of_a_wheel_names_what_it_needs(installed_wheel, tmp_path):
    script = installed_wheel / 'deim_mmdet/.mim/tools/benchmark.py'
    done = subprocess.run(
        (sys.executable, str(script), 'deim_dfine_n.py'),
        cwd=tmp_path,
        env=os.environ | dict(PYTHONPATH=str(installed_wheel)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith('benchmark.py runs in a checkout of deim_mmdet only')
    assert said.endswith(f'not at {installed_wheel}/deim_mmdet/.mim/benchmarks')


def test_mim_train_finds_a_config_of_the_wheel_by_name(installed_wheel, tmp_path):
    command = json.loads(
        run(
            *(sys.executable, '-c', MIM_TRAIN, '', 'configs/deim_dfine_l.py'),
            cwd=tmp_path,
            PYTHONPATH=str(installed_wheel),
        ).splitlines()[-1]
    )
    mim = installed_wheel / 'deim_mmdet/.mim'
    assert command[1:3] == [str(mim / 'tools/train.py'), str(mim / 'configs/deim_dfine_l.py')]
    config = Config.fromfile(command[2], import_custom_modules=False)
    assert config.model.bbox_head.num_classes == 80


def test_mim_train_finds_a_config_of_an_editable_install_by_name(source, tmp_path):
    wheel = build('editable', source, tmp_path / 'dist')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'site')
    output = run(
        *(sys.executable, '-c', MIM_TRAIN, str(tmp_path / 'site'), 'deim_dfine_l.py'), cwd=tmp_path
    )
    command = json.loads(output.splitlines()[-1])
    assert Path(command[1]).resolve() == source / 'tools/train.py'
    assert Path(command[2]) == source / 'configs/deim_dfine_l.py'
    # Links, not copies: an edit of the checkout counts at once, and moving it breaks none.
    for link in (source / 'deim_mmdet/.mim').iterdir():
        assert not Path(os.readlink(link)).is_absolute()
        assert link.resolve() == source / link.name


def test_mim_search_shows_the_published_models(installed_wheel, tmp_path):
    out = tmp_path / 'models.json'
    arguments = ('search', 'deim_mmdet', '--json', str(out))
    run(sys.executable, '-m', 'mim', *arguments, cwd=tmp_path, PYTHONPATH=str(installed_wheel))
    found = json.loads(out.read_text())
    assert len(found['weight']) == len(published_models())
    for model in published_models():
        name = model['Name']
        [result] = model['Results']
        assert found[f'{result["Dataset"].lower()}/box_ap'][name] == result['Metrics']['box AP']
        assert found['config'][name] == model['Config']
        assert found['weight'][name] == model['Weights']


def test_mim_download_fetches_weights_and_config(installed_wheel, tmp_path, file_server):
    """From a server of this test's, which the index of a copy of the installed package names."""
    address, folder, requests = file_server
    torch.save(dict(model=reference_state_dict('deim_dfine_n')), folder / 'download')
    site = tmp_path / 'site'
    shutil.copytree(installed_wheel, site)
    index = site / 'deim_mmdet/.mim/model-index.yml'
    text, drive = index.read_text(), 'https://drive.usercontent.google.com/'
    assert text.count(drive) == 15
    index.write_text(text.replace(drive, f'{address}/'))
    arguments = ('download', 'deim_mmdet', '--config', 'deim_dfine_n', '--dest', 'weights')
    run(sys.executable, '-m', 'mim', *arguments, cwd=tmp_path, PYTHONPATH=str(site))
    (request,) = requests
    assert request.startswith('/download?id=')
    weights = tmp_path / 'weights'
    assert sorted(path.name for path in weights.iterdir()) == [
        'deim_dfine_n.pth',
        'deim_dfine_n.py',
    ]
    cfg = Config.fromfile(weights / 'deim_dfine_n.py').model
    cfg.backbone.init_cfg = None
    model = MODELS.build(cfg)
    load_checkpoint(model, f'{SCHEME}{weights}/deim_dfine_n.pth', strict=True)


def test_published_models_have_configs_and_the_recipes_epochs():
    models = {model['Name']: model for model in published_models()}
    for model in models.values():
        assert (ROOT / model['Config']).exists(), model['Config']
    # Beside them there are other weights of the same networks.
    assert sorted(name for name in models if not OTHER_WEIGHTS.search(name)) == schedules.MODELS
    for name in schedules.MODELS:
        assert name == Path(models[name]['Config']).stem
        assert models[name]['Metadata']['Epochs'] == schedules.schedule(name)['epochs']


def test_weights_come_from_the_authors_under_names_that_tell_the_model():
    hosts = dict(
        deim='https://drive.usercontent.google.com/download?id=',
        dfine='https://github.com/Peterande/storage/releases/download/dfinev1.0/',
        rtdetrv2='https://github.com/lyuwenyu/storage/releases/download/v0.1/',
        rtdetrv4='https://drive.usercontent.google.com/download?id=',
        deimv2='https://huggingface.co/Intellindust/DEIMv2_',
        ecdet='https://github.com/capsule2077/edgecrafter/releases/download/edgecrafterv1/',
    )
    addresses = {model['Name']: model['Weights'] for model in published_models()}
    assert len(set(addresses.values())) == len(addresses)
    for name, address in addresses.items():
        family = name.split('_')[0]
        assert address.startswith(hosts[family])
        # What MIM saves it as, and what the converter goes by.
        assert address.split('/')[-1].startswith(name if 'deim' in family else family)
        assert address.endswith(('.pth', '.safetensors'))
        # MIM prints this name; weights made from DINOv3's carry its licence.
        assert ('DINOv3-licence' in address) == (name in ('deimv2_l', 'deimv2_x'))


def test_config_names_are_unique():
    """MIM looks a config up by its file name alone and refuses one that is there twice."""
    names = [path.name for path in (ROOT / 'configs').rglob('*.py')]
    names += [path.name for path in (ROOT / 'deim_mmdet').rglob('*.py') if '.mim' not in path.parts]
    names += [path.name for path in (ROOT / 'tools').rglob('*.py')]
    runnable = [path.name for path in (ROOT / 'configs').glob('*.py')]
    for folder in ('convergence', 'demo', 'objects365', 'plugins'):
        runnable += [path.name for path in (ROOT / 'configs' / folder).glob('*.py')]
    assert [name for name in runnable if names.count(name) > 1] == []


def test_nothing_of_an_editable_install_is_dirty_in_git():
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout')
    ignored = run('git', 'check-ignore', 'deim_mmdet/.mim', 'deim_mmdet.egg-info/', cwd=ROOT)
    assert ignored.split() == ['deim_mmdet/.mim', 'deim_mmdet.egg-info/']


def setup_arguments() -> dict:
    """The arguments of ``setup`` that are written out in setup.py."""
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / 'setup.py').read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'setup'
    ]
    (call,) = calls
    return {
        keyword.arg: ast.literal_eval(keyword.value)
        for keyword in call.keywords
        if keyword.arg in ('python_requires', 'classifiers')
    }


def test_the_supported_versions_of_python_are_stated_alike():
    arguments = setup_arguments()
    lowest = arguments['python_requires'].removeprefix('>=')
    named = [
        classifier.rpartition(' ')[2]
        for classifier in arguments['classifiers']
        if re.search(r'Python :: \d\.\d', classifier)
    ]
    assert named == ['3.11', '3.12', '3.13']
    assert lowest == named[0]
    ruff = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['ruff']
    assert ruff['target-version'] == f'py{lowest.replace(".", "")}'


@pytest.mark.slow
def test_lint_finds_what_is_newer_than_the_lowest_version(tmp_path):
    binaries = Path(sys.executable).parent
    if not shutil.which('make') or not (binaries / 'ruff').exists():
        pytest.skip('make and ruff are needed')
    path = tmp_path / 'module.py'
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    for code, said in (
        # Of 3.11, then in 3.12 of the library and of the language.
        ('from typing import Self\n\nprint(Self)\n', None),
        ('from itertools import batched\n\nprint(batched([1], 1))\n', "'itertools.batched' member"),
        ('class Box[T]:\n    pass\n', 'type parameter lists'),
    ):
        path.write_text(code)
        # As `make lint` with another list of files. The environment isn't brought up to date: its
        # versions may be other ones than the pinned ones.
        options = ('-o', '.venv/.ready-dev', f'BIN={binaries}', f'LINTED={path}')
        done = subprocess.run(
            ('make', *options, 'lint'), cwd=ROOT, capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert (done.returncode == 0) == (said is None), output
        assert said is None or (said in output and '3.12' in output)
