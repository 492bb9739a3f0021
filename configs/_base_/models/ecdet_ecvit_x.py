_base_ = './ecdet_ecvit_l.py'

model = dict(
    backbone=dict(
        ffn_channels=2304,
        init_cfg=dict(
            checkpoint='deim-mmdet://https://github.com/capsule2077/edgecrafter/releases/download/'
            'edgecrafterv1/ecvitsplus.pth'
        ),
    ),
    neck=dict(ffn_channels=2048, expansion=1.5),
    bbox_head=dict(decoder=dict(ffn_channels=2048)),
)
