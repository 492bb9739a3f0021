_base_ = [
    './_base_/models/rtdetrv2_resnetvd_r34.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/rtdetrv2.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMultiScale', base_size_repeat=3)]),
    bbox_head=_base_.baseline_head,
)

recipe = dict(epochs=120, stages=(0, 0, 117))
train_cfg = dict(max_epochs=120)
optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.', kind='norm', lr_mult=0.5, decay_mult=0.0),
            dict(name=r'^backbone\.', lr_mult=0.5),
            dict(kind='norm', decay_mult=0.0),
            dict(kind='bias', decay_mult=0.0),
        ]
    )
)
train_dataloader = dict(batch_size=4)
