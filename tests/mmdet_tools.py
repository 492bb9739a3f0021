"""mmdet's own tools, started by themselves where MMCV has operators, else as docs/ tells."""

from pathlib import Path

from deim_mmdet.compat import provide_operators

import mmdet
import pytest

TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
HAS_OPERATORS = not provide_operators()
# What stands between the interpreter and one of TOOLS.
LAUNCHER = () if HAS_OPERATORS else ('-m', 'deim_mmdet')
needs_operators = pytest.mark.skipif(
    not HAS_OPERATORS, reason="needs MMCV's compiled operators: make ops"
)
