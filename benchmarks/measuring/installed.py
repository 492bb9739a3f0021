"""Which of the backends that need an optional package can be measured here."""

import functools
import importlib

from deim_mmdet.deployment.extras import require

from .reference_models import import_reference
from .transformers_models import import_transformers

_EXPORT = ('onnxruntime', 'onnx')
#: The packages of each backend that needs some.
PACKAGES = dict(
    reference=('dfine',),
    transformers=('transformers',),
    onnxruntime=_EXPORT,
    openvino=('openvino', *_EXPORT),
    tensorrt=('tensorrt', *_EXPORT),
)
# How to import what is used of a package, where the package alone would come without it.
_IMPORTS = dict(dfine=import_reference, transformers=import_transformers)


def reason_against(backend: str) -> str:
    """Why a backend can't be measured here; empty where it can.

    Its packages are imported, as one that is there may still be of no use: parts of it are missing,
    or made for another version of torch.
    """
    for package in PACKAGES.get(backend, ()):
        try:
            require(package)
        except ImportError as error:
            return str(error)
        load = _IMPORTS.get(package, functools.partial(importlib.import_module, package))
        try:
            load()
        except Exception as error:
            # Anything may be raised there.
            first = f'{type(error).__name__}: {error}'.splitlines()[0]
            return f'{package} is not installed in a form that can be imported ({first})'
    return ''
