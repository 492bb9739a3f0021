"""Which of the backends that need an optional package can be measured here."""

import importlib

from deim_mmdet.deployment.extras import require

from .reference_models import import_reference
from .transformers_models import import_transformers

#: The package of each backend that needs one.
PACKAGES = dict(
    reference='dfine',
    transformers='transformers',
    onnxruntime='onnxruntime',
    openvino='openvino',
    tensorrt='tensorrt',
)
# How to import what is used of a package, where the package alone would come without it.
_IMPORTS = dict(reference=import_reference, transformers=import_transformers)


def reason_against(backend: str) -> str:
    """Why a backend can't be measured here; empty where it can.

    Its package is imported, as one that is there may still be of no use: parts of it are missing,
    or made for another version of torch.
    """
    package = PACKAGES.get(backend)
    if package is None:
        return ''
    try:
        require(package)
    except ImportError as error:
        return str(error)
    try:
        _IMPORTS.get(backend, lambda: importlib.import_module(package))()
    except Exception as error:
        # Anything may be raised there.
        first = f'{type(error).__name__}: {error}'.splitlines()[0]
        return f'{package} is not installed in a form that can be imported ({first})'
    return ''
