# DEIMv2 S: ViT-T, which its authors distilled from DINOv3.
_base_ = './deimv2_vit_m.py'

model = dict(
    backbone=dict(
        vit=dict(embed_dims=192, num_heads=3),
        out_channels=192,
        init_cfg=dict(
            checkpoint='deim-mmdet://https://drive.usercontent.google.com/download?'
            'id=1YMTq_woOLjAcZnHSYNTsNg7f0ahj5LPs&export=download&confirm=t#/vitt_distill.pt'
        ),
    ),
    neck=dict(in_channels=[192, 192, 192], out_channels=192, expansion=0.34, depth=0.67),
    bbox_head=dict(in_channels=[192, 192, 192], embed_dims=192),
)
