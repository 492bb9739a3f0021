_base_ = './deimv2_vit_l.py'

model = dict(
    backbone=dict(
        vit=dict(gated_ffn=True),
        adapter_channels=64,
        out_channels=256,
        init_cfg=dict(checkpoint='deim-mmdet://timm://vit_small_plus_patch16_dinov3.lvd1689m'),
    ),
    neck=dict(
        in_channels=[256, 256, 256],
        out_channels=256,
        ffn_channels=1024,
        expansion=1.25,
        depth=1.37,
    ),
    bbox_head=dict(
        in_channels=[256, 256, 256],
        embed_dims=256,
        decoder=dict(num_layers=6, ffn_channels=2048),
    ),
)
