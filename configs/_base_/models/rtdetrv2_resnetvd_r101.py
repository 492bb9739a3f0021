_base_ = './rtdetrv2_resnetvd_r50.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(
            checkpoint='deim-mmdet://https://github.com/lyuwenyu/storage/releases/download/v0.1/'
            'ResNet101_vd_ssld_pretrained_from_paddle.pth'
        ),
    ),
    neck=dict(out_channels=384, ffn_channels=2048),
    bbox_head=dict(in_channels=[384, 384, 384]),
)
