"""Names of classes: those of published weights, and which names of two lists mean the same.

*The rule.* Two names mean the same class if one of these holds:

1. They are equal.
2. They are equal without case, spaces, hyphens and underscores: ``Wine Glass`` is ``wine glass``.
3. An alternative of one is the other, or an alternative of the other. A slash separates
   alternatives: ``Orange/Tangerine`` is ``orange``.

The misspellings in the published names of Objects365 are corrected first (:data:`CORRECTED`).
Different words for similar things are not equal: COCO's ``suitcase`` isn't ``Luggage``. An earlier
rule goes before a later one. A name that would mean several classes of the other list means none.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

from mmdet.datasets import CocoDataset, Objects365V2Dataset

COCO = CocoDataset.METAINFO['classes']
#: Of D-FINE's weights for Objects365. They number classes by category ids, which start at 1.
OBJECTS365_ROWS = ('unused_0', *Objects365V2Dataset.METAINFO['classes'])

#: Correct spelling of names, both without case and spaces.
CORRECTED = dict(
    bakset='basket',
    ballon='balloon',
    billards='billiards',
    buttefly='butterfly',
    campel='camel',
    dinningtable='diningtable',
    extentioncord='extensioncord',
    hairdrier='hairdryer',
    hotairballon='hotairballoon',
    moniter='monitor',
    mushroon='mushroom',
    noddles='noodles',
    tableteniispaddle='tabletennispaddle',
    tapemeasur='tapemeasure',
)


def default_classes(num_classes: int) -> Sequence[str] | None:
    """Class names of published weights that don't state them, by the number of their scores.

    COCO's for 80, :data:`OBJECTS365_ROWS` for 366, None for any other number.
    """
    return {len(names): names for names in (COCO, OBJECTS365_ROWS)}.get(num_classes)


def same_classes(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of indices into two lists of class names that mean the same class.

    See the module for the rule. Several of ``ours`` may have the same one of ``theirs``.

    Args:
        ours: Names to look for, in the order of the result.
        theirs: Names to look in.
    """
    equal = {name: index for index, name in enumerate(theirs)}
    without_case, alternative = defaultdict(set), defaultdict(set)
    for index, name in enumerate(theirs):
        without_case[_spelling(name)].add(index)
        for spelling in _alternatives(name):
            alternative[spelling].add(index)
    pairs = []
    for index, name in enumerate(ours):
        found = {equal[name]} if name in equal else without_case.get(_spelling(name))
        if found is None:
            found = set().union(*(alternative.get(each, ()) for each in _alternatives(name)))
        if len(found) == 1:
            pairs.append((index, *found))
    return pairs


def _spelling(name: str) -> str:
    joined = re.sub(r'(?<=\w)[\s_-]+(?=\w)', '', name.strip().casefold())
    return CORRECTED.get(joined, joined)


def _alternatives(name: str) -> set[str]:
    """Spellings of a name's alternatives and of the whole name."""
    return {_spelling(part) for part in (name, *name.split('/')) if part.strip()}
