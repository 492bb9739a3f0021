_base_ = './dfine_hgnetv2_s.py'

model = dict(
    backbone=dict(out_indices=(2, 3)),
    neck=dict(
        in_channels=[512, 1024],
        feat_strides=[16, 32],
        out_channels=128,
        ffn_channels=512,
        expansion=0.34,
        depth=0.5,
    ),
    bbox_head=dict(
        in_channels=[128, 128],
        embed_dims=128,
        decoder=dict(num_points=[6, 6], ffn_channels=512),
    ),
)
