_base_ = [
    './_base_/models/rtdetrv2_resnetvd_r101.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deim_rtdetrv2.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(type='DenseO2OMixUp'),
            dict(type='DenseO2OMultiScale', base_size_repeat=3),
        ]
    )
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[dict(kind='norm', decay_mult=0.0), dict(name=r'^backbone\.', lr_mult=0.01)]
    )
)
train_dataloader = dict(batch_size=4)
