_base_ = [
    './_base_/models/rtdetrv2_resnetvd_r50.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/rtdetrv2.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMultiScale', base_size_repeat=3)]),
    backbone=_base_.frozen_backbone,
    bbox_head=_base_.baseline_head,
)
train_dataloader = dict(batch_size=4)
