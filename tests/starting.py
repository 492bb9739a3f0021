"""Takes what tests don't need out of the start of a process and of a runner: most of their time."""

import os
import sys
from pathlib import Path


def leave_configs_unformatted() -> None:
    """mmengine has yapf lay out the text of a config three times a runner, a second each."""
    from yapf.yapflib import yapf_api

    # The fork's mmengine imports the function anew for each text.
    for module in (yapf_api, sys.modules.get('mmengine.config.config')):
        if hasattr(module, 'FormatCode'):
            module.FormatCode = lambda text, **style: (text, True)


def leave_out_transformers() -> None:
    """mmdet imports it where it is installed, for models that read text."""
    sys.modules['transformers'] = None


def quick_environment(*folders: Path, **variables: str) -> dict[str, str]:
    """Of a process that does both, on one core, and imports from these folders too."""
    tests = Path(__file__).parent
    path = [*map(str, (*folders, tests, tests / 'starts')), os.environ.get('PYTHONPATH', '')]
    path = os.pathsep.join(filter(None, path))
    return dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1', **variables)
