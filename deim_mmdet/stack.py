"""Finds out which libraries are installed: OpenMMLab's or the maintained fork's, which versions.

Two sets of distributions ("stacks") have the same import names ``mmengine``, ``mmcv`` and
``mmdet``. pip doesn't know that: one installed over the other leaves a mixture of files.
"""

import importlib
import importlib.util
import multiprocessing
import warnings
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

from packaging.specifiers import SpecifierSet

from .version import __version__

# Names of the distributions by stack.
STACKS = {
    'openmmlab': ('mmengine', 'mmcv', 'mmcv-lite', 'mmdet'),
    'onedl': ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'),
}
# By import name, the versions that the tests passed with (docs/compatibility.md).
TESTED_VERSIONS = {
    'openmmlab': {
        'torch': '>=2.6.0a0,<2.16',
        'mmengine': '==0.10.7',
        'mmcv': '==2.1.*',
        'mmdet': '==3.3.*',
    },
    'onedl': {
        'torch': '==2.13.*',
        'mmengine': '==0.10.12',
        'mmcv': '==2.3.6',
        'mmdet': '==3.5.1',
    },
}
INSTALL = (
    "`pip install 'deim_mmdet[openmmlab]'` installs OpenMMLab's, "
    "`pip install 'deim_mmdet[onedl]'` their maintained fork"
)

#: A function that gives the version of a distribution.
Versions = Callable[[str], str]


def installed_stacks(version: Versions = metadata.version) -> dict[str, list[str]]:
    """Distributions of each stack that are installed, by the stack's name.

    A library that lies on the path, but wasn't installed by pip, doesn't count.
    """
    return {
        stack: found
        for stack, names in STACKS.items()
        if (found := [name for name in names if _has(name, version)])
    }


def _has(name: str, version: Versions) -> bool:
    try:
        version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_stack(
    stacks: dict[str, list[str]], find: Callable[[str], object] = importlib.util.find_spec
) -> None:
    """Check what is installed before any of it is imported.

    Args:
        stacks: As :func:`installed_stacks` returns them.
        find: Function that finds a module by name; it gives None where there is none.

    Raises:
        ImportError: A library isn't installed; the message says what installs it.
    """
    missing = [name for name in ('mmengine', 'mmcv', 'mmdet') if find(name) is None]
    if missing:
        raise ImportError(
            f'deim_mmdet {__version__} needs mmengine, mmcv and mmdet, but '
            f'{" and ".join(missing)} {"is" if len(missing) == 1 else "are"} not installed: '
            f'{INSTALL}'
        )
    if len(stacks) > 1:
        every = sorted(name for names in stacks.values() for name in names)
        warnings.warn(
            f"OpenMMLab's libraries ({', '.join(stacks['openmmlab'])}) and those of their fork "
            f'({", ".join(stacks["onedl"])}) are installed side by side. Both write the same '
            f'files, so that this is a mixture: `pip uninstall -y {" ".join(every)}`, then one '
            f'of both: {INSTALL}',
            stacklevel=3,
        )
    elif {'mmcv', 'mmcv-lite'} <= {*stacks.get('openmmlab', ())}:
        warnings.warn(
            'mmcv and mmcv-lite are installed side by side and write the same files: `pip '
            'uninstall -y mmcv mmcv-lite`, then install one of them again',
            stacklevel=3,
        )


def check_versions(versions: dict[str, str], stack: str) -> None:
    """Warn once of versions that the tests haven't been run with.

    Args:
        versions: Version by import name, ``{'torch': '2.13.0+cpu', …}``.
        stack: Name of the libraries' stack.
    """
    tested = TESTED_VERSIONS[stack]
    others = [
        f'{name} {version} ({tested[name]})'
        for name, version in versions.items()
        if not SpecifierSet(tested[name]).contains(version, prereleases=True)
    ]
    # Data-loader workers don't repeat it.
    if others and multiprocessing.parent_process() is None:
        warnings.warn(
            f'deim_mmdet {__version__} has not been tested with {", ".join(others)}. In brackets '
            'is what it has been tested with; docs/compatibility.md has the table',
            stacklevel=3,
        )


def import_mmdet() -> ModuleType:
    """Import mmdet, which checks itself whether it fits MMCV.

    Raises:
        ImportError: It doesn't fit; mmdet 3.3, for example, refuses MMCV 2.2 and newer.
    """
    try:
        return importlib.import_module('mmdet')
    except AssertionError as error:
        raise ImportError(
            f"mmdet refuses this version of another library: {error} MMCV's releases from 2.2 on "
            "need another mmdet: `pip install 'mmcv-lite>=2.1,<2.2'`, or mmcv in this range"
        ) from error
