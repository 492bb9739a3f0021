_base_ = './rtdetrv2_resnetvd_r50.py'

model = dict(
    backbone=dict(
        depth=34,
        init_cfg=dict(
            checkpoint='deim-mmdet://https://github.com/lyuwenyu/storage/releases/download/v0.1/'
            'ResNet34_vd_pretrained_from_paddle.pth'
        ),
    ),
    neck=dict(in_channels=[128, 256, 512], expansion=0.5),
    bbox_head=dict(decoder=dict(num_layers=4)),
)
