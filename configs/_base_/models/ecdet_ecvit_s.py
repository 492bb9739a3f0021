_base_ = './ecdet_ecvit_l.py'

model = dict(
    backbone=dict(
        embed_dims=192,
        num_heads=3,
        out_channels=192,
        init_cfg=dict(
            checkpoint='deim-mmdet://https://github.com/capsule2077/edgecrafter/releases/download/'
            'edgecrafterv1/ecvitt.pth'
        ),
    ),
    neck=dict(
        kind='deimv2',
        in_channels=[192, 192, 192],
        out_channels=192,
        ffn_channels=512,
        expansion=0.34,
        depth=0.67,
    ),
    bbox_head=dict(in_channels=[192, 192, 192], embed_dims=192, decoder=dict(ffn_channels=512)),
)
