"""DEIM (CVPR 2025) for MMDetection: Dense O2O, matchability-aware loss and D-FINE.

``import deim_mmdet`` registers all components in mmdet's registries.
"""

from . import stack
from .version import __version__

_stacks = stack.installed_stacks()
stack.check_stack(_stacks)

import mmcv  # noqa: E402
import mmengine  # noqa: E402
import torch  # noqa: E402

from . import compat  # noqa: E402

# Before mmdet is imported: it can't be without MMCV's operators.
compat.provide_operators()
_libraries = (torch, mmengine, mmcv, stack.import_mmdet())
stack.check_versions(
    {library.__name__: library.__version__ for library in _libraries},
    'onedl' if 'onedl' in _stacks else 'openmmlab',
)

from . import datasets, engine, evaluation, models, reports  # noqa: E402

__all__ = ['__version__', 'datasets', 'engine', 'evaluation', 'models', 'reports']
