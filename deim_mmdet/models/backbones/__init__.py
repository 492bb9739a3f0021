from .ecvit import ECViT
from .hgnetv2 import HGNetv2
from .partly_pretrained import PartlyPretrained
from .resnet_vd import ResNetVd
from .vision_transformer import VisionTransformer
from .vit_adapter import ViTAdapter

__all__ = [
    'ECViT',
    'HGNetv2',
    'PartlyPretrained',
    'ResNetVd',
    'ViTAdapter',
    'VisionTransformer',
]
