# DEIM-D-FINE-X, fine-tuned on COCO from D-FINE-X on Objects365 (published: 59.5 AP). Unlike
# deim_dfine_x, it keeps D-FINE's ReLU and frozen norms, which those weights were trained with.
_base_ = [
    './_base_/models/dfine_hgnetv2_x.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deim.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(type='DenseO2OMixUp'),
            dict(type='DenseO2OMultiScale', base_size_repeat=3),
        ]
    ),
    backbone=dict(frozen_stem=True, norm_frozen=True, init_cfg=None),
    bbox_head=dict(query_selection=dict(act='ReLU'), decoder=dict(act='ReLU')),
)
recipe = _base_.recipe_from_objects365
train_cfg = dict(max_epochs=24)
optim_wrapper = dict(
    optimizer=dict(lr=2.5e-4),
    paramwise_cfg=dict(
        rules=[dict(name=r'^backbone\.', lr_mult=0.01), dict(kind='norm', decay_mult=0.0)]
    ),
)
load_from = 'https://github.com/Peterande/storage/releases/download/dfinev1.0/dfine_x_obj365.pth'
