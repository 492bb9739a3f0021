"""Batch augments for mmdet's ``DetDataPreprocessor``, and a faster form of it."""

from .copy_blend import DenseO2OCopyBlend
from .data_preprocessor import DenseO2ODataPreprocessor
from .mixup import DenseO2OMixUp
from .multi_scale import DenseO2OMultiScale

__all__ = [
    'DenseO2OCopyBlend',
    'DenseO2ODataPreprocessor',
    'DenseO2OMixUp',
    'DenseO2OMultiScale',
]
