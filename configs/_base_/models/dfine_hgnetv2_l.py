# DEIM-D-FINE L. The other sizes inherit it and state what differs.
model = dict(
    type='DEIMDetector',
    data_preprocessor=dict(
        type='DenseO2ODataPreprocessor',
        mean=[0, 0, 0],
        std=[255, 255, 255],
        bgr_to_rgb=True,
        pad_size_divisor=1,
        samples_on_host=True,
    ),
    backbone=dict(
        type='HGNetv2',
        arch='B4',
        out_indices=(1, 2, 3),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='deim-mmdet://https://github.com/Peterande/storage/releases/download/dfinev1.0/'
            'PPHGNetV2_B4_stage1.pth',
        ),
    ),
    neck=dict(
        type='HybridEncoder',
        in_channels=[512, 1024, 2048],
        feat_strides=[8, 16, 32],
        out_channels=256,
        ffn_channels=1024,
        expansion=1.0,
        depth=1.0,
    ),
    bbox_head=dict(
        type='DFINEHead',
        num_classes=80,
        in_channels=[256, 256, 256],
        embed_dims=256,
        query_selection=dict(num_queries=300, act='SiLU'),
        denoising=dict(num_queries=100, label_noise=0.5, box_noise=1.0),
        decoder=dict(
            num_points=[3, 6, 3],
            num_layers=6,
            ffn_channels=1024,
            reg_max=32,
            reg_scale=4.0,
            act='SiLU',
        ),
        # The other terms are those of the criterion: L1, GIoU, FGL and DDF.
        criterion=dict(
            terms=dict(
                loss_cls=dict(loss=dict(type='MatchabilityAwareLoss', gamma=1.5, loss_weight=1.0))
            )
        ),
        postprocess=dict(max_per_img=300),
    ),
)
