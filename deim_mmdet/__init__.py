"""DEIM (CVPR 2025) for MMDetection: Dense O2O, matchability-aware loss and D-FINE.

``import deim_mmdet`` registers all components in mmdet's registries.
"""

import mmcv
import mmengine
import torch
from mmengine.utils import digit_version

from . import compat
from .version import __version__

# Before mmdet, which can't be imported without MMCV's operators.
compat.provide_operators()

import mmdet  # noqa: E402

# Of each library the lowest version that works and the first that is not known to.
SUPPORTED_VERSIONS = {
    torch: ('2.6.0', '3.0.0'),
    mmengine: ('0.10.3', '1.0.0'),
    mmcv: ('2.1.0', '2.2.0'),
    mmdet: ('3.3.0', '3.4.0'),
}


def check_versions() -> None:
    """Check the installed versions of torch and OpenMMLab's libraries.

    Raises:
        ImportError: One lies outside of the supported range.
    """
    for library, (lowest, end) in SUPPORTED_VERSIONS.items():
        # A local label such as +cu121 says nothing about compatibility.
        version = library.__version__.split('+')[0]
        if not digit_version(lowest) <= digit_version(version) < digit_version(end):
            name = library.__name__
            raise ImportError(
                f'deim_mmdet {__version__} works with {name} >= {lowest}, < {end}, but '
                f"{version} is installed: pip install '{name}>={lowest},<{end}'"
            )


check_versions()

from . import datasets, engine, evaluation, models  # noqa: E402

__all__ = ['__version__', 'check_versions', 'datasets', 'engine', 'evaluation', 'models']
