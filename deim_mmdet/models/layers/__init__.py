from .denoising import DenoisingQueryGenerator
from .dfine_decoder import DFINEDecoder
from .query_selection import QuerySelection
from .rtdetr_decoder import RTDETRDecoder

__all__ = ['DFINEDecoder', 'DenoisingQueryGenerator', 'QuerySelection', 'RTDETRDecoder']
