_base_ = [
    './_base_/models/deimv2_vit_l.py',
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

recipe = dict(epochs=68, stages=(4, 34, 60), matcher_change_epoch=50)
train_cfg = dict(max_epochs=68)
optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.vit\..*(norm|bias)', lr_mult=0.025, decay_mult=0.0),
            dict(name=r'^backbone\.vit\.', lr_mult=0.025),
            *_base_.other_rules,
        ]
    ),
)
