_base_ = './dfine_hgnetv2_l.py'

model = dict(
    backbone=dict(
        arch='B2',
        use_lab=True,
        init_cfg=dict(
            checkpoint='deim-mmdet://https://github.com/Peterande/storage/releases/download/dfinev1.0/'
            'PPHGNetV2_B2_stage1.pth'
        ),
    ),
    neck=dict(in_channels=[384, 768, 1536], depth=0.67),
    bbox_head=dict(decoder=dict(num_layers=4)),
)
