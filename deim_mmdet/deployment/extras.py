"""Optional dependencies of deployment."""

from importlib.util import find_spec

from ..utils.errors import MissingPackageError

# How to install each module.
_COMMANDS = {
    'onnx': "pip install 'deim_mmdet[export]'",
    'onnxruntime': "pip install 'deim_mmdet[export]'",
    'openvino': "pip install 'deim_mmdet[openvino]'",
    'tensorrt': 'pip install tensorrt (on a machine with an NVIDIA GPU)',
    'transformers': "pip install 'transformers>=5'",
    'dfine': "pip install 'pydfine>=0.2.1'",
}


def is_installed(module: str) -> bool:
    """Whether a module can be found; it isn't imported."""
    return find_spec(module) is not None


def require(*modules: str) -> None:
    """Check that optional modules are installed.

    Args:
        modules: Names of modules whose command for installing is known here.

    Raises:
        ImportError: One is missing; the message says how to install it.
    """
    for module in modules:
        if not is_installed(module):
            raise MissingPackageError(f'{module} is not installed: {_COMMANDS[module]}')
