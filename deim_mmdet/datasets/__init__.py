"""Data sets and transforms, all registered in mmdet's registries."""

from .coco import CheckedCocoDataset
from .transforms import (
    DenseO2O,
    DenseO2OIoUCrop,
    DenseO2OMosaic,
    DenseO2OPhotometricDistort,
    DenseO2OZoomOut,
    DropTinyBoxes,
    LoadImageChecked,
)

__all__ = [
    'CheckedCocoDataset',
    'DenseO2O',
    'DenseO2OIoUCrop',
    'DenseO2OMosaic',
    'DenseO2OPhotometricDistort',
    'DenseO2OZoomOut',
    'DropTinyBoxes',
    'LoadImageChecked',
]
