# Own data with transforms of Albumentations, between Dense O2O's own. docs/data.md says how to
# install it: by itself, as it would put another OpenCV over MMDetection's.
_base_ = '../deim_dfine_custom.py'

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
# In place of the photometric distortion, where a sample becomes no mosaic.
train_pipeline = [
    dict(
        step,
        single=[
            albumentations if each.type == 'DenseO2OPhotometricDistort' else each
            for each in step.single
        ],
    )
    if step.type == 'DenseO2O'
    else step
    for step in _base_.train_dataloader.dataset.pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
