_base_ = './deimv2_hgnetv2_pico.py'

model = dict(
    backbone=dict(arch='Femto'),
    neck=dict(out_channels=96),
    bbox_head=dict(
        in_channels=[96, 96],
        embed_dims=96,
        query_selection=dict(num_queries=150),
        decoder=dict(ffn_channels=256),
        postprocess=dict(max_per_img=150),
    ),
)
