from .hgnetv2 import HGNetv2
from .resnet_vd import ResNetVd

__all__ = ['HGNetv2', 'ResNetVd']
