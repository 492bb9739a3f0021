# D-FINE-S on Objects365, the start of its fine-tuning on COCO and on own data.
_base_ = [
    '../_base_/models/dfine_hgnetv2_s.py',
    '../_base_/datasets/objects365_detection.py',
    '../_base_/schedules/dfine_objects365.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMultiScale', base_size_repeat=20)]),
    bbox_head=dict(_base_.baseline_head, num_classes=365),
)

recipe = dict(epochs=36, stages=(0, 0, 36))
train_cfg = dict(max_epochs=36)
optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.', lr_mult=0.5),
            dict(kind='norm', decay_mult=0.0),
            dict(kind='bias', decay_mult=0.0),
        ]
    )
)
