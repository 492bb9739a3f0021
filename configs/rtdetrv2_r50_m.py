_base_ = [
    './_base_/models/rtdetrv2_resnetvd_r50_m.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/rtdetrv2.py',
    './_base_/default_runtime.py',
]

# Six layers are trained; evaluation uses the first three.
model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMultiScale', base_size_repeat=3)]),
    backbone=_base_.frozen_backbone,
    bbox_head=dict(
        _base_.baseline_head,
        decoder=dict(_base_.baseline_head.decoder, num_layers=6, num_eval_layers=3),
    ),
)

recipe = dict(epochs=84, stages=(0, 0, 81))
train_cfg = dict(max_epochs=84)
train_dataloader = dict(batch_size=4)
