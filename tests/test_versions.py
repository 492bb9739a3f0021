"""Which libraries are found beneath, and what is said of others; with made-up installations."""

import importlib
import warnings
from importlib import metadata

from deim_mmdet import stack

import pytest

OPENMMLAB = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}
ONEDL = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1'}
IMPORTED = {'torch': '2.13.0+cpu', **OPENMMLAB}


def versions(*installed):
    """As importlib.metadata.version, where only the given distributions are installed."""
    table = {name: number for part in installed for name, number in part.items()}

    def version(name):
        if name not in table:
            raise metadata.PackageNotFoundError(name)
        return table[name]

    return version


@pytest.mark.parametrize('installed', [OPENMMLAB, ONEDL])
def test_one_stack_is_taken_as_it_is(installed, recwarn):
    stacks = stack.installed_stacks(versions(installed))
    assert [*stacks.values()] == [[*installed]]
    stack.check_stack(stacks, find=lambda name: name)
    assert not recwarn.list


def test_this_environment_has_one_stack(recwarn):
    stack.check_stack(stack.installed_stacks())
    assert not recwarn.list


def test_without_a_stack_two_commands_are_named():
    with pytest.raises(ImportError, match='mmengine and mmcv and mmdet are not installed') as error:
        stack.check_stack(stack.installed_stacks(versions()), find=lambda name: None)
    assert "pip install 'deim_mmdet[openmmlab]'" in str(error.value)
    assert "pip install 'deim_mmdet[onedl]'" in str(error.value)


def test_a_missing_library_is_named():
    with pytest.raises(ImportError, match='but mmcv is not installed'):
        stack.check_stack({}, find=lambda name: None if name == 'mmcv' else name)


def test_both_stacks_are_recognised_and_named():
    stacks = stack.installed_stacks(versions(OPENMMLAB, ONEDL))
    with pytest.warns(UserWarning, match='side by side') as caught:
        stack.check_stack(stacks, find=lambda name: name)
    (warning,) = caught
    for name in (*OPENMMLAB, *ONEDL):
        assert name in str(warning.message)
    # Uninstalling is one command, as pip takes it.
    assert f'`pip uninstall -y {" ".join(sorted([*OPENMMLAB, *ONEDL]))}`' in str(warning.message)


def test_mmcv_with_and_without_operators_side_by_side_is_named():
    stacks = stack.installed_stacks(versions(OPENMMLAB, {'mmcv-lite': '2.1.0'}))
    with pytest.warns(UserWarning, match='mmcv and mmcv-lite are installed side by side'):
        stack.check_stack(stacks, find=lambda name: name)


@pytest.mark.parametrize(
    'torch', ['2.6.0', '2.6.1+cu124', '2.6.0a0+df5bbc0', '2.9.0a0+git1', '2.13.0', '2.15.1']
)
def test_tested_versions_pass_without_a_word(torch):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        stack.check_versions(IMPORTED | {'torch': torch}, 'openmmlab')


@pytest.mark.parametrize('torch', ['2.5.1', '1.13.1', '2.16.0', '2.16.0.dev1', '3.0.0'])
def test_other_versions_give_one_warning_with_the_tested_ones(torch):
    odd = IMPORTED | {'torch': torch, 'mmengine': '0.11.0'}
    with pytest.warns(UserWarning, match='has not been tested with') as caught:
        stack.check_versions(odd, 'openmmlab')
    (warning,) = caught
    message = str(warning.message)
    assert f'torch {torch} (>=2.6.0a0,<2.16)' in message
    assert 'mmengine 0.11.0 (==0.10.7)' in message
    assert 'mmcv' not in message


def test_versions_of_one_stack_are_not_those_of_the_other():
    with pytest.warns(UserWarning, match=r'mmcv 2\.1\.0 \(==2\.3\.6\)'):
        stack.check_versions(IMPORTED, 'onedl')


def test_mmdet_s_own_refusal_becomes_an_import_error_with_the_remedy(monkeypatch):
    def refuse(name):
        raise AssertionError('MMCV==2.2.0 is used but incompatible.')

    monkeypatch.setattr(importlib, 'import_module', refuse)
    with pytest.raises(ImportError, match=r"MMCV==2\.2\.0 .* `pip install 'mmcv-lite>=2\.1,<2\.2'"):
        stack.import_mmdet()
