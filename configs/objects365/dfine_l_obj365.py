# D-FINE-L on Objects365, the start of its fine-tuning on COCO and on own data.
_base_ = [
    '../_base_/models/dfine_hgnetv2_l.py',
    '../_base_/datasets/objects365_detection.py',
    '../_base_/schedules/dfine_objects365.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMultiScale', base_size_repeat=4)]),
    backbone=dict(frozen_stem=True, norm_frozen=True),
    bbox_head=dict(_base_.baseline_head, num_classes=365),
)
