from .hgnetv2 import HGNetv2
from .partly_pretrained import PartlyPretrained
from .resnet_vd import ResNetVd

__all__ = ['HGNetv2', 'PartlyPretrained', 'ResNetVd']
