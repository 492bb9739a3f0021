_base_ = './dfine_hgnetv2_l.py'

model = dict(
    backbone=dict(
        arch='B5',
        init_cfg=dict(
            checkpoint='deim-mmdet://https://github.com/Peterande/storage/releases/download/dfinev1.0/'
            'PPHGNetV2_B5_stage1.pth'
        ),
    ),
    neck=dict(out_channels=384, ffn_channels=2048),
    bbox_head=dict(in_channels=[384, 384, 384], decoder=dict(reg_scale=8.0)),
)
