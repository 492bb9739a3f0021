from . import (
    backbones,
    data_preprocessors,
    dense_heads,
    detectors,
    layers,
    losses,
    necks,
    task_modules,
)

__all__ = [
    'backbones',
    'data_preprocessors',
    'dense_heads',
    'detectors',
    'layers',
    'losses',
    'necks',
    'task_modules',
]
