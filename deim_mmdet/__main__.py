"""Run a script with the package imported first: ``python -m deim_mmdet SCRIPT [ARGUMENT …]``.

For MMDetection's own tools where MMCV has no operators: they import mmdet, which fails there
without what ``deim_mmdet.compat`` stands in for.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        sys.exit(f'{" ".join(sys.argv[1:2]) or "python -m deim_mmdet"}: give the path of a script')
    # As Python itself does for a script.
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
