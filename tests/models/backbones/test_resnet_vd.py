from deim_mmdet.models.backbones.resnet_vd import rename_resnet_vd


def test_names_of_resnet_vd_files():
    assert rename_resnet_vd('conv1.conv1_2.norm.running_var') == 'stem.4.running_var'
    assert rename_resnet_vd('res_layers.0.blocks.0.short.conv.weight') == (
        'layer1.0.downsample.1.weight'
    )
    assert rename_resnet_vd('res_layers.3.blocks.1.branch2c.norm.bias') == 'layer4.1.bn3.bias'
    # Ours, and what a backbone doesn't have, stay.
    assert rename_resnet_vd('layer4.1.bn3.bias') == 'layer4.1.bn3.bias'
    assert rename_resnet_vd('fc.weight') == 'fc.weight'
