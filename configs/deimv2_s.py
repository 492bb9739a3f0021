_base_ = [
    './_base_/models/deimv2_vit_s.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deimv2_vit.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            *_base_.dense_augments,
            dict(type='DenseO2OMultiScale', base_size_repeat=20),
        ]
    )
)

recipe = dict(epochs=132, stages=(4, 64, 120), matcher_change_epoch=100)
train_cfg = dict(max_epochs=132)
optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-4),
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.vit\..*(norm|bias)', lr_mult=0.05, decay_mult=0.0),
            dict(name=r'^backbone\.vit\.', lr_mult=0.05),
            *_base_.other_rules,
        ]
    ),
)
