_base_ = './deimv2_hgnetv2_pico.py'

model = dict(
    backbone=dict(arch='Atto'),
    neck=dict(in_channels=[256], out_channels=64),
    bbox_head=dict(
        in_channels=[64, 64],
        embed_dims=64,
        query_selection=dict(num_queries=100),
        decoder=dict(ffn_channels=160),
        postprocess=dict(max_per_img=100),
    ),
)
