from .hungarian_matcher import HungarianMatcher, Pairs, pairs_of_sets, union_set
from .targets import Targets

__all__ = ['HungarianMatcher', 'Pairs', 'Targets', 'pairs_of_sets', 'union_set']
