_base_ = [
    './_base_/models/ecdet_ecvit_l.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/edgecrafter.py',
    './_base_/default_runtime.py',
]

from deim_mmdet.engine import set_dense_o2o

model = dict(data_preprocessor=dict(batch_augments=_base_.dense_augments))

optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.transformer\..*(norm|bn|bias)', lr_mult=0.01, decay_mult=0.0),
            dict(name=r'^backbone\.transformer\.', lr_mult=0.01),
            dict(kind='norm', decay_mult=0.0),
            dict(kind='bias', decay_mult=0.0),
        ]
    ),
)

set_dense_o2o(_base_, mosaic_prob=1.0)
