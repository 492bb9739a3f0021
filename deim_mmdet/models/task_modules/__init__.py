from .hungarian_matcher import HungarianMatcher, OneToOneMatcher, ScoreOverlapMatcher
from .pairs import Pairs, Places, denoising_pairs, union_set
from .targets import Targets, input_shape

__all__ = [
    'HungarianMatcher',
    'OneToOneMatcher',
    'Pairs',
    'Places',
    'ScoreOverlapMatcher',
    'Targets',
    'denoising_pairs',
    'input_shape',
    'union_set',
]
