_base_ = './deimv2_hgnetv2_n.py'

model = dict(
    # Weights of B0, where names and shapes agree.
    backbone=dict(arch='Pico', out_indices=(2,), init_cfg=dict(type='PartlyPretrained')),
    neck=dict(
        _delete_=True,
        type='LiteEncoder',
        in_channels=[512],
        feat_strides=[16, 32],
        out_channels=112,
        expansion=0.34,
        depth=0.5,
    ),
    bbox_head=dict(
        in_channels=[112, 112],
        embed_dims=112,
        query_selection=dict(num_queries=200),
        decoder=dict(type='DEIMv2LightDecoder', num_points=[4, 2], ffn_channels=320),
        # MAL, L1 and GIoU, on the matching of each layer.
        criterion=dict(type='SetCriterion'),
        postprocess=dict(max_per_img=200),
    ),
)
