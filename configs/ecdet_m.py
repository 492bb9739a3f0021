_base_ = [
    './_base_/models/ecdet_ecvit_m.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/edgecrafter.py',
    './_base_/default_runtime.py',
]

from deim_mmdet.engine import set_dense_o2o

model = dict(data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMixUp', prob=0.75)]))

recipe = dict(epochs=62, stages=(0, 30, 60))
train_cfg = dict(max_epochs=62)
optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-4),
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.transformer\..*(norm|bn|bias)', lr_mult=0.05, decay_mult=0.0),
            dict(name=r'^backbone\.transformer\.', lr_mult=0.05),
            dict(kind='norm', decay_mult=0.0),
            dict(kind='bias', decay_mult=0.0),
        ]
    ),
)

set_dense_o2o(_base_, mosaic_prob=0.75)
