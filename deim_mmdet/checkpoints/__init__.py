from . import safe_globals
from .reference import convert_name, convert_reference_state_dict, rename_resnet_vd

__all__ = [
    'convert_name',
    'convert_reference_state_dict',
    'rename_resnet_vd',
    'safe_globals',
]
