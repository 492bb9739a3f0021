# DEIMv2 L: DINOv3's ViT-S/16 with an adapter. The other sizes with a vision transformer inherit it
# and state what differs.
_base_ = './dfine_hgnetv2_l.py'

model = dict(
    # ImageNet's mean and standard deviation.
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        type='ViTAdapter',
        vit=dict(embed_dims=384, num_heads=6, out_indices=(5, 8, 11), form='dinov3'),
        adapter_channels=32,
        out_channels=224,
        # These weights are under Meta's DINOv3 licence.
        init_cfg=dict(
            type='Pretrained', checkpoint='deim-mmdet://timm://vit_small_patch16_dinov3.lvd1689m'
        ),
    ),
    neck=dict(kind='deimv2', in_channels=[224, 224, 224], out_channels=224, ffn_channels=896),
    bbox_head=dict(
        in_channels=[224, 224, 224],
        embed_dims=224,
        query_selection=dict(project=False),
        decoder=dict(type='DEIMv2Decoder', num_layers=4, ffn_channels=1792),
        criterion=dict(late_matcher=dict(type='ScoreOverlapMatcher')),
    ),
)
