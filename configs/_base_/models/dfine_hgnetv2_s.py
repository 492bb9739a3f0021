_base_ = './dfine_hgnetv2_l.py'

model = dict(
    backbone=dict(
        arch='B0',
        use_lab=True,
        init_cfg=dict(
            checkpoint='deim-mmdet://https://github.com/Peterande/storage/releases/download/dfinev1.0/'
            'PPHGNetV2_B0_stage1.pth'
        ),
    ),
    neck=dict(in_channels=[256, 512, 1024], expansion=0.5, depth=0.34),
    bbox_head=dict(decoder=dict(num_layers=3)),
)
