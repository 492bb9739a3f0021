"""Batch augments for mmdet's ``DetDataPreprocessor``."""

from .batch_augments import DenseO2OMixUp, DenseO2OMultiScale

__all__ = ['DenseO2OMixUp', 'DenseO2OMultiScale']
