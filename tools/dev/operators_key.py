"""Print the name of a folder for compiled operators; it stands for all that they depend on.

These are the sources, torch, the kind of processor, the place of CUDA's tools, and ``setup.py``.
"""

import hashlib
import platform
import runpy
from pathlib import Path

import torch
from torch.utils.cpp_extension import CUDA_HOME

ROOT = Path(__file__).resolve().parents[2]
tag = runpy.run_path(ROOT / 'deim_mmdet/ops/library.py')['build_tag'](torch.__version__)
parts = (tag, platform.machine(), str(torch.version.cuda and CUDA_HOME))
digest = hashlib.sha256('\n'.join(parts).encode() + (ROOT / 'setup.py').read_bytes())
print(digest.hexdigest()[:20])
