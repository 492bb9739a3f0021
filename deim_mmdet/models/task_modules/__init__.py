from .hungarian_matcher import HungarianMatcher
from .pairs import Pairs, denoising_pairs, union_set
from .targets import Targets, input_shape

__all__ = ['HungarianMatcher', 'Pairs', 'Targets', 'denoising_pairs', 'input_shape', 'union_set']
