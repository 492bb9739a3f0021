"""ResNet-vd: names of published weights, and arguments of mmdet's network."""

from deim_mmdet.models.backbones.resnet_vd import PUBLISHED_NAMES, ResNetVd, rename_resnet_vd
from deim_mmdet.utils.name_table import NameTable

import pytest
import torch


def test_names_of_resnet_vd_files():
    assert rename_resnet_vd('conv1.conv1_2.norm.running_var') == 'stem.4.running_var'
    assert rename_resnet_vd('res_layers.0.blocks.0.short.conv.weight') == (
        'layer1.0.downsample.1.weight'
    )
    assert rename_resnet_vd('res_layers.3.blocks.1.branch2c.norm.bias') == 'layer4.1.bn3.bias'
    # Ours, and what a backbone doesn't have, stay.
    assert rename_resnet_vd('layer4.1.bn3.bias') == 'layer4.1.bn3.bias'
    assert rename_resnet_vd('fc.weight') == 'fc.weight'


@pytest.mark.parametrize('kind', ['Pretrained', 'PartlyPretrained'])
def test_published_names_are_loaded(kind, tmp_path):
    torch.manual_seed(0)
    model, path = ResNetVd(18), tmp_path / 'published.pth'
    published = NameTable([(ours, theirs) for theirs, ours in PUBLISHED_NAMES])
    torch.save({published(name): value for name, value in model.state_dict().items()}, path)
    other = ResNetVd(18, init_cfg=dict(type=kind, checkpoint=str(path)))
    other.init_weights()
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def norms_train(model):
    model.train()
    return all(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_arguments_of_mmdets_network():
    assert norms_train(ResNetVd(18))
    assert not norms_train(ResNetVd(18, norm_eval=True))
    three = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(1, 2))
    with pytest.raises(ValueError, match='among -1 … 3, got 4'):
        ResNetVd(18, **three, frozen_stages=4)
    assert not any(p.requires_grad for p in ResNetVd(18, **three, frozen_stages=3).parameters())
