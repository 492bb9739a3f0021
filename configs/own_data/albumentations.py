# Own data with transforms of Albumentations, between Dense O2O's own. `pip install albumentations`.
_base_ = '../deim_dfine_custom.py'

image_size = 640
# Pixels and boxes change together. Boxes of which less than 30 % is left are dropped.
albumentations = dict(
    type='Albu',
    transforms=[
        dict(type='RandomBrightnessContrast', p=0.2),
        dict(type='OneOf', transforms=[dict(type='Blur'), dict(type='MedianBlur')], p=0.1),
        dict(type='RandomRotate90', p=0.5),
    ],
    bbox_params=dict(
        type='BboxParams',
        format='pascal_voc',
        label_fields=['gt_bboxes_labels', 'gt_ignore_flags'],
        min_visibility=0.3,
    ),
)
train_pipeline = [
    dict(
        type='DenseO2O',
        mosaic_prob=0.5,
        load=[dict(type='LoadImageChecked'), dict(type='LoadAnnotations', with_bbox=True)],
        mosaic=[
            dict(
                type='DenseO2OMosaic',
                tile_size=image_size // 2,
                scale=(image_size, image_size),
            ),
            dict(type='DenseO2OPhotometricDistort'),
        ],
        # Where a sample becomes no mosaic.
        single=[albumentations, dict(type='DenseO2OZoomOut'), dict(type='DenseO2OIoUCrop')],
    ),
    dict(type='ContiguousRandomFlip', prob=0.5),
    dict(type='Resize', scale=(image_size, image_size), keep_ratio=False),
    dict(type='DropTinyBoxes'),
    dict(type='PackDetImage'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
