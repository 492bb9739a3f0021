"""Print what compiled operators depend on, as the name of a folder.

The sources, torch, the kind of processor, where CUDA's tools lie, and what ``setup.py`` says.
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
