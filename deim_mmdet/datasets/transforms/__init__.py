"""Image transforms of Dense O2O (DEIM, section 3.1), each usable alone in an mmdet pipeline."""

from .crops import DenseO2OIoUCrop, DenseO2OZoomOut
from .dense_o2o import DenseO2O
from .formatting import ContiguousRandomFlip, PackDetImage, PackDetPlanes
from .letterbox import Letterbox
from .loading import LoadImageChecked, ScaleInstances
from .mosaic import DenseO2OMosaic
from .objects import DropTinyBoxes
from .photometric import DenseO2OPhotometricDistort

__all__ = [
    'ContiguousRandomFlip',
    'DenseO2O',
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
]
