# DEIMv2 M: ViT-T+, which its authors distilled from DINOv3.
_base_ = './deimv2_vit_l.py'

model = dict(
    backbone=dict(
        vit=dict(embed_dims=256, num_heads=4, out_indices=(3, 7, 11), form='plain'),
        adapter_channels=16,
        out_channels=256,
        init_cfg=dict(
            checkpoint='deim-mmdet://https://drive.usercontent.google.com/download?'
            'id=1COHfjzq5KfnEaXTluVGEOMdhpuVcG6Jt&export=download&confirm=t#/vittplus_distill.pt'
        ),
    ),
    neck=dict(in_channels=[256, 256, 256], out_channels=256, ffn_channels=512, expansion=0.67),
    bbox_head=dict(in_channels=[256, 256, 256], embed_dims=256, decoder=dict(ffn_channels=512)),
)
