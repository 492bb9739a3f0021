_base_ = './ecdet_ecvit_s.py'

model = dict(
    backbone=dict(
        embed_dims=256,
        num_heads=4,
        out_channels=256,
        init_cfg=dict(
            checkpoint='deim-mmdet://https://github.com/capsule2077/edgecrafter/releases/download/'
            'edgecrafterv1/ecvittplus.pth'
        ),
    ),
    neck=dict(in_channels=[256, 256, 256], out_channels=256, expansion=0.75),
    bbox_head=dict(in_channels=[256, 256, 256], embed_dims=256, decoder=dict(ffn_channels=1024)),
)
