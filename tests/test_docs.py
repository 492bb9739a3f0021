"""Every command in the README and in docs/ is one that its program takes."""

import argparse
import copy
import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from deim_mmdet.engine.config import load_config

import pytest
import yaml
from mmdet.registry import HOOKS
from mmengine.visualization import Visualizer

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(r'```(\w*)\n(.*?)```', re.DOTALL)
SPAN = re.compile(r'(?<!`)`([^`\n]+)`(?!`)')
COMMAND = re.compile(
    r'(mim|python|torchrun|srun|make|pip|pytest|source) \S|tools/\S+ \S|[A-Z_]+=\S+ \S'
)
OPTIONS = '--cfg-options '
# Options of mim itself, each with a value.
MIM = ('--gpus', '--gpus-per-node', '--cpus-per-task', '--partition', '--srun-args')
# What stands for something that the reader fills in.
PLACEHOLDER = re.compile(r'…|\[|\b(CONFIG|CHECKPOINT|NAME|SRC)\b')


def commands():
    """(page, command) of all code blocks and of spans that begin with a program or an option."""
    for page in PAGES:
        text = page.read_text()
        for language, block in BLOCK.findall(text):
            if language in ('bash', 'sh'):
                for line in block.replace('\\\n', ' ').splitlines():
                    line = ' '.join(shlex.split(line, comments=True) and line.split())
                    if line and not line.startswith('export '):
                        yield page.name, line
        for span in SPAN.findall(BLOCK.sub('', text)):
            if not PLACEHOLDER.search(span) and (COMMAND.match(span) or span.startswith(OPTIONS)):
                yield page.name, span


class Parsed(Exception):
    """What a program's parser made of its arguments; raised in place of running it."""


@pytest.fixture
def parse(monkeypatch):
    """Function (script, arguments): what the script's own parser makes of them."""

    def parse(script, arguments):
        whole = argparse.ArgumentParser.parse_args

        def stop(self, *args, **kwargs):
            raise Parsed(whole(self, *args, **kwargs))

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
            patch.setattr(sys, 'argv', [str(script), *arguments])
            patch.syspath_prepend(str(script.parent))
            with pytest.raises(Parsed) as parsed:
                runpy.run_path(str(script), run_name='__main__')
        return parsed.value.args[0]

    return parse


@pytest.fixture
def config_at(tmp_path):
    """Function: path of the config that a command names, in the checkout or by its name."""

    def config_at(name):
        if name == 'my_config.py':
            own = tmp_path / name
            text = (ROOT / 'configs' / 'deim_dfine_custom.py').read_text()
            own.write_text(text.replace("'./deim_dfine_s.py'", f"'{ROOT}/configs/deim_dfine_s.py'"))
            return own
        return next(path for path in (ROOT / name, ROOT / 'configs' / name) if path.is_file())

    return config_at


def without_mims_options(words):
    kept = []
    words = iter(words)
    for word in words:
        if word in MIM:
            next(words)
        else:
            kept.append(word)
    return kept


def check_options(path, options):
    """A config with these options builds all its hooks, as a training does first."""
    cfg = load_config(str(path), options)
    # The visualisation hook asks for the current one, which a runner makes first.
    Visualizer.get_instance('visualizer')
    for hook in [*cfg.get('custom_hooks', []), *cfg.default_hooks.values()]:
        assert HOOKS.build(copy.deepcopy(hook)) is not None


def check_script(words, parse, config_at):
    script = ROOT / words[0]
    parsed = parse(script, words[1:])
    named = getattr(parsed, 'config', None) or getattr(parsed, 'configs', None) or []
    for name in [named] if isinstance(named, str | Path) else named:
        path = config_at(str(name))
        if getattr(parsed, 'cfg_options', None):
            check_options(path, parsed.cfg_options)
    return parsed


def check_shell_script(parse, script, *arguments):
    text = (ROOT / script).read_text()
    # A script may hand all its arguments on.
    if handed_to := re.search(r'(\S+\.py) "\$@"', text):
        parse(ROOT / handed_to[1], list(arguments))
        return
    for option in filter(re.compile('--').match, arguments):
        assert re.search(rf'(?m)^ *{option}\)', text), option


def check_mim(words, parse, config_at):
    action, package, *rest = words
    assert package == 'deim_mmdet'
    if action in ('train', 'test'):
        rest = without_mims_options(rest)
        if '--checkpoint' in rest:
            at = rest.index('--checkpoint')
            rest[at : at + 2] = []
            rest[1:1] = ['weights.pth']
        check_script([f'tools/{action}.py', *rest], parse, config_at)
    elif action == 'download':
        index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
        assert rest[rest.index('--config') + 1] in [model['Name'] for model in index['Models']]
    else:
        assert action == 'search'


@pytest.mark.parametrize(('page', 'command'), sorted(set(commands())))
def test_command(page, command, parse, config_at, tmp_path, monkeypatch):
    words = shlex.split(command.replace('$HEAD', 'head'), comments=True)
    while re.fullmatch(r'[A-Z_]+=\S*', words[0]):
        words = words[1:]
    program, rest = words[0], words[1:]
    if program == OPTIONS.strip():
        cfg_options = parse(ROOT / 'tools/train.py', ['x.py', *words]).cfg_options
        name = 'rtdetrv2_r18.py' if 'sampling' in command else 'deim_dfine_l.py'
        check_options(config_at(name), cfg_options)
    elif program == 'mim':
        if rest[1:]:
            check_mim(rest, parse, config_at)
    elif program in ('torchrun', 'srun', 'python') or program.startswith('tools/'):
        scripts = [i for i, word in enumerate(words) if word.startswith(('tools/', 'benchmarks/'))]
        if scripts and words[scripts[0]].endswith('.sh'):
            check_shell_script(parse, *words[scripts[0] :])
        elif scripts:
            check_script(words[scripts[0] :], parse, config_at)
        elif rest[:2] == ['-m', 'deim_mmdet']:
            assert find_spec('deim_mmdet.__main__')
            assert rest[2].endswith('.py')
        elif program == 'python':
            assert rest[0] == '-c'
            exec(rest[1], {})
        else:
            # An option of the launcher that a sentence is about.
            assert rest == ['--kill-on-bad-exit=1']
    elif program == 'make':
        makefile = (ROOT / 'Makefile').read_text()
        assert re.search(rf'(?m)^{rest[0]}:', makefile)
        for variable, value in (word.split('=') for word in rest[1:]):
            assert re.search(rf'(?m)^{variable} \?=', makefile)
            assert variable != 'STACK' or (ROOT / 'requirements' / f'{value}.txt').is_file()
    elif program == 'pip':
        assert rest[0] in ('install', 'uninstall', 'wheel')
        for extra in re.findall(r'(?:deim_mmdet|\.)\[(\w+)\]', command):
            assert f"'{extra}':" in (ROOT / 'setup.py').read_text()
    elif program == 'pytest':
        assert all(list(ROOT.glob(word)) for word in rest if word.startswith('tests/'))
    else:
        assert program == 'source', f'{page}: no way to check {command!r} here'


def test_the_commands_are_found():
    found = list(commands())
    assert ('faults.md', '--cfg-options skip_non_finite=5') in found
    assert len({page for page, _ in found}) > 8
    assert len(found) > 45


def test_option_of_another_hook_would_be_noticed():
    with pytest.raises(TypeError, match='skip_non_finite'):
        check_options(ROOT / 'configs/deim_dfine_l.py', {'custom_hooks.2.skip_non_finite': 5})
