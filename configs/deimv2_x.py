_base_ = [
    './_base_/models/deimv2_vit_x.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deimv2_vit.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            *_base_.dense_augments,
            dict(type='DenseO2OMultiScale', base_size_repeat=3),
        ]
    )
)

optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.vit\..*(norm|bias)', lr_mult=0.02, decay_mult=0.0),
            dict(name=r'^backbone\.vit\.', lr_mult=0.02),
            *_base_.other_rules,
        ]
    ),
)
