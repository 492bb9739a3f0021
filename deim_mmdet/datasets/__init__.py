"""Data sets, transforms and the collate function, all registered."""

from .coco import CheckedCocoDataset, CheckedObjects365V2Dataset
from .collate import stack_images
from .mix import DenseO2ODataset
from .transforms import (
    ContiguousRandomFlip,
    DenseO2O,
    DenseO2OIoUCrop,
    DenseO2OMosaic,
    DenseO2OPhotometricDistort,
    DenseO2OZoomOut,
    DropTinyBoxes,
    Letterbox,
    LoadImageChecked,
    PackDetImage,
    PackDetPlanes,
    ScaleInstances,
)

__all__ = [
    'CheckedCocoDataset',
    'CheckedObjects365V2Dataset',
    'ContiguousRandomFlip',
    'DenseO2O',
    'DenseO2ODataset',
    'DenseO2OIoUCrop',
    'DenseO2OMosaic',
    'DenseO2OPhotometricDistort',
    'DenseO2OZoomOut',
    'DropTinyBoxes',
    'Letterbox',
    'LoadImageChecked',
    'PackDetImage',
    'PackDetPlanes',
    'ScaleInstances',
    'stack_images',
]
