# ECDet L. The other sizes inherit it and state what differs.
_base_ = './dfine_hgnetv2_l.py'

model = dict(
    # ImageNet's mean and standard deviation.
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        type='ECViT',
        embed_dims=384,
        num_heads=6,
        out_channels=256,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='deim-mmdet://https://github.com/capsule2077/edgecrafter/releases/download/'
            'edgecrafterv1/ecvits.pth',
        ),
    ),
    neck=dict(
        kind='deimv2', in_channels=[256, 256, 256], ffn_channels=1024, expansion=0.75, act='SiLU'
    ),
    bbox_head=dict(
        query_selection=dict(project=False),
        decoder=dict(type='ECDetDecoder', num_layers=4, ffn_channels=1024),
    ),
)
