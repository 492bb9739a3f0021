import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='session')
def load_tool():
    """Import a script of ``tools/`` by its path there: they are no package."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / 'tools' / path)
        if (folder := str(Path(spec.origin).parent)) not in sys.path:
            sys.path.append(folder)  # as Python does for a script
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
