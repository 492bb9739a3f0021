from .denoising import DenoisingQueryGenerator
from .dfine_decoder import DEIMv2Decoder, DEIMv2LightDecoder, DFINEDecoder, ECDetDecoder
from .query_selection import QuerySelection
from .rtdetr_decoder import RTDETRDecoder

__all__ = [
    'DEIMv2Decoder',
    'DEIMv2LightDecoder',
    'DFINEDecoder',
    'DenoisingQueryGenerator',
    'ECDetDecoder',
    'QuerySelection',
    'RTDETRDecoder',
]
