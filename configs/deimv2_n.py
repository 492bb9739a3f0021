_base_ = [
    './_base_/models/deimv2_hgnetv2_n.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deimv2.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(type='DenseO2OMixUp'),
            dict(type='DenseO2OCopyBlend', prob=0.4, stages=('dense',)),
        ]
    )
)

recipe = dict(epochs=160, stages=(4, 78, 148), lr_gamma=1.0, matcher_change_epoch=136)
train_cfg = dict(max_epochs=160)
optim_wrapper = dict(
    optimizer=dict(lr=8e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.', lr_mult=0.5),
            dict(kind='norm', decay_mult=0.0),
            dict(kind='bias', decay_mult=0.0),
        ]
    ),
)
