_base_ = [
    './_base_/models/dfine_hgnetv2_s.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deim.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(type='DenseO2OMixUp'),
            dict(type='DenseO2OMultiScale', base_size_repeat=20),
        ]
    )
)

recipe = dict(epochs=132, stages=(4, 64, 120))
train_cfg = dict(max_epochs=132)
optim_wrapper = dict(
    optimizer=dict(lr=4e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        rules=[dict(kind='norm', decay_mult=0.0), dict(name=r'^backbone\.', lr_mult=0.5)]
    ),
)
