import re

from deim_mmdet.utils.name_table import NameTable

import pytest
import torch

TABLE = NameTable(
    [('head.{i}.{leaf}', 'bbox_head.{i}.{leaf}'), ('copy.{path}', 'bbox_head.{path}')],
    derived=re.compile(r'head\.\d+\.anchors'),
)


def test_tensors_get_their_other_names():
    one, two = torch.ones(2), torch.zeros(3)
    given = {'head.0.weight': one, 'copy.0.weight': one.clone(), 'head.1.anchors': two}
    renamed = TABLE.renamed({**given, 'copy.mlp.0.bias': two}, 'a head')
    assert [*renamed] == ['bbox_head.0.weight', 'bbox_head.mlp.0.bias']
    assert renamed['bbox_head.0.weight'] is one
    assert renamed['bbox_head.mlp.0.bias'] is two


def test_names_of_no_pair_are_counted():
    given = {'head.0.weight': 0, 'neck.weight': 0, 'head.x.weight': 0}
    with pytest.raises(ValueError, match=r'2 of 3 names are not of a head: neck\.weight, head\.x'):
        TABLE.renamed(given, 'a head')


def test_two_names_of_a_parameter_must_agree():
    given = {'head.0.weight': torch.ones(2), 'copy.0.weight': torch.zeros(2)}
    with pytest.raises(ValueError, match=r'stored twice differ .*: copy\.0\.weight'):
        TABLE.renamed(given, 'a head')
