"""Run a script with the package imported first: ``python -m deim_mmdet SCRIPT [ARGUMENT …]``.

This is for MMDetection's own tools where MMCV has no operators. They import mmdet, which fails
there unless ``deim_mmdet.compat`` has put stand-ins for the operators first.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        sys.exit(f'{" ".join(sys.argv[1:2]) or "python -m deim_mmdet"}: give the path of a script')
    # Arguments then begin with the script, as when Python itself runs it.
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
