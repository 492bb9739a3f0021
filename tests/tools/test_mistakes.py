"""A user's mistakes end a command with one line, those of the program with a traceback."""

import sys

import pytest
from golden import CONFIGS
from red_boxes import write_red_boxes

DEMO = CONFIGS / 'demo' / 'deim_dfine_demo.py'
TOOLS = (
    'train.py', 'test.py', 'export.py', 'check_dataset.py', 'benchmark.py',
    'analysis/show_samples.py',
)  # fmt: skip


@pytest.fixture(scope='module', params=TOOLS)
def tool(request, load_tool):
    return request.param, load_tool(request.param)


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """Function: what a tool says when a mistake ends it."""
    (tmp_path / 'some.pth').touch()

    def ended(tool, config, *options, root=tmp_path):
        name, module = tool
        checkpoint = [str(tmp_path / 'some.pth')] if name in ('test.py', 'export.py') else []
        options = ['--cfg-options', f'data_root={root}/', *options]
        if name == 'benchmark.py':
            # The only part that reads data.
            options += ['--parts', 'pipeline']
        monkeypatch.setattr(sys, 'argv', [name, str(config), *checkpoint, *options])
        with pytest.raises(SystemExit) as stop:
            module.main()
        assert '\n' not in str(stop.value)
        return str(stop.value)

    return ended


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ('image_size=100', 'UserError: image_size=100 must be a positive multiple of 32'),
        ('imagesize=64', 'UserError: --cfg-options imagesize: the config has no imagesize'),
    ],
)
def test_options(tool, ended, option, said):
    assert said in ended(tool, DEMO, option)


def test_no_config(tool, ended):
    assert 'FileNotFoundError: there is no config none.py' in ended(tool, 'none.py')


@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_no_data(load_tool, ended, name, tmp_path, capsys):
    said = ended((name, load_tool(name)), DEMO, root=tmp_path / 'none')
    assert 'UserError: the data would break' in said
    assert 'Cannot open annotation file' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['benchmark.py', 'analysis/show_samples.py'])
def test_no_data_to_look_at(load_tool, ended, name, tmp_path):
    said = ended((name, load_tool(name)), DEMO, root=tmp_path / 'none')
    assert 'FileNotFoundError: Cannot open annotation file' in said


def test_no_weights_to_start_from(load_tool, ended):
    said = ended(('train.py', load_tool('train.py')), DEMO, 'load_from=none.pth')
    assert said == 'FileNotFoundError: there is no checkpoint none.pth'


@pytest.fixture
def data(tmp_path):
    for split in ('train', 'val'):
        write_red_boxes(tmp_path, split)


@pytest.mark.usefixtures('data')
@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (['model.bbox_head.num_classes=3'], 'UserError: model.bbox_head.num_classes=3, but the'),
        (['train_cfg.max_epochs=2'], 'UserError: max_epochs=2 is too short for the 4 stages'),
        (['train_dataloader.batch_size=99'], 'UserError: the training set has 3 images'),
        (
            [
                'train_cfg._delete_=True',
                'train_cfg.type=IterBasedTrainLoop',
                'train_cfg.max_iters=9',
            ],
            'UserTypeError: the recipe counts epochs',
        ),
    ],
)
def test_what_only_the_built_training_knows(load_tool, ended, monkeypatch, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    options = ['train_dataloader.batch_size=2', *options]
    assert said in ended(('train.py', load_tool('train.py')), DEMO, *options)


@pytest.mark.usefixtures('data')
@pytest.mark.parametrize('name', ['test.py', 'export.py'])
def test_a_damaged_checkpoint(load_tool, ended, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    said = ended((name, load_tool(name)), DEMO)
    assert said == f'CheckpointError: checkpoint {tmp_path}/some.pth is empty: take an earlier one'


@pytest.mark.usefixtures('data')
def test_errors_of_the_program_keep_their_tracebacks(load_tool, monkeypatch, tmp_path):
    module = load_tool('train.py')

    def build(cfg):
        raise ValueError('of the program')

    monkeypatch.setattr(module.RUNNERS, 'build', build)
    monkeypatch.setattr(
        sys, 'argv', ['train.py', str(DEMO), '--cfg-options', f'data_root={tmp_path}/']
    )
    with pytest.raises(ValueError, match='of the program'):
        module.main()


@pytest.mark.parametrize('name', ['test.py', 'export.py', 'check_dataset.py', 'benchmark.py'])
def test_no_folder_to_write_to(load_tool, ended, name, tmp_path):
    """A test, a check or a benchmark may take long: they say so before they begin."""
    files = {'test.py': 'found.pkl', 'export.py': 'found.onnx'}
    out = tmp_path / 'some.pth' / files.get(name, 'found')
    said = ended((name, load_tool(name)), DEMO, '--out', str(out))
    assert said.startswith(f'RunFault: cannot write to the folder {tmp_path / "some.pth"}')
    assert said.endswith('name another by --out')
