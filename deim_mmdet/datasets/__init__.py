"""Data sets and transforms, all registered in mmdet's registries."""

from .coco import CheckedCocoDataset
from .mix import DenseO2ODataset
from .transforms import (
    ContiguousRandomFlip,
    DenseO2O,
    DenseO2OIoUCrop,
    DenseO2OMosaic,
    DenseO2OPhotometricDistort,
    DenseO2OZoomOut,
    DropTinyBoxes,
    LoadImageChecked,
    PackDetPlanes,
    ScaleInstances,
)

__all__ = [
    'CheckedCocoDataset',
    'ContiguousRandomFlip',
    'DenseO2O',
    'DenseO2ODataset',
    'DenseO2OIoUCrop',
    'DenseO2OMosaic',
    'DenseO2OPhotometricDistort',
    'DenseO2OZoomOut',
    'DropTinyBoxes',
    'LoadImageChecked',
    'PackDetPlanes',
    'ScaleInstances',
]
