_base_ = [
    './_base_/models/deimv2_hgnetv2_atto.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deimv2_small.py',
    './_base_/default_runtime.py',
]

from deim_mmdet.engine import set_dense_o2o, set_image_size

optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.', lr_mult=0.5),
            dict(name=r'^neck\.pool_convs\.'),
            dict(kind='norm', decay_mult=0.0),
        ]
    ),
)
train_dataloader = dict(batch_size=32)

set_image_size(_base_, 320)
set_dense_o2o(_base_, min_box_size=12, mosaic_prob=0.3)
