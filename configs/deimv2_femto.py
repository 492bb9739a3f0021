_base_ = [
    './_base_/models/deimv2_hgnetv2_femto.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deimv2_small.py',
    './_base_/default_runtime.py',
]

from deim_mmdet.engine import set_dense_o2o, set_image_size

train_dataloader = dict(batch_size=32)

set_image_size(_base_, 416)
set_dense_o2o(_base_, min_box_size=10)
