"""Batch augments for mmdet's ``DetDataPreprocessor``, and a faster form of it."""

from .batch_augments import DenseO2OMixUp, DenseO2OMultiScale
from .data_preprocessor import DenseO2ODataPreprocessor

__all__ = ['DenseO2ODataPreprocessor', 'DenseO2OMixUp', 'DenseO2OMultiScale']
