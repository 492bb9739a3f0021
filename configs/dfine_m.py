_base_ = [
    './_base_/models/dfine_hgnetv2_m.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/dfine.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMultiScale', base_size_repeat=6)]),
    bbox_head=_base_.baseline_head,
)

recipe = dict(epochs=132, stages=(0, 0, 120))
train_cfg = dict(max_epochs=132)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.', lr_mult=0.1),
            dict(kind='norm', decay_mult=0.0),
            dict(kind='bias', decay_mult=0.0),
        ]
    ),
)
