_base_ = [
    './_base_/models/dfine_hgnetv2_x.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/dfine.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMultiScale', base_size_repeat=3)]),
    backbone=dict(frozen_stem=True, norm_frozen=True),
    bbox_head=_base_.baseline_head,
)
recipe = dict(ema_restart_decay=0.9998)
optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[dict(name=r'^backbone\.', lr_mult=0.01), dict(kind='norm', decay_mult=0.0)]
    )
)
