_base_ = [
    './_base_/models/dfine_hgnetv2_n.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/dfine.py',
    './_base_/default_runtime.py',
]

model = dict(bbox_head=_base_.baseline_head)

recipe = dict(epochs=160, stages=(0, 0, 148))
auto_scale_lr = dict(base_batch_size=128)
train_cfg = dict(max_epochs=160)
optim_wrapper = dict(
    optimizer=dict(lr=8e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.', lr_mult=0.5),
            dict(kind='norm', decay_mult=0.0),
            dict(kind='bias', decay_mult=0.0),
        ]
    ),
)
train_dataloader = dict(batch_size=32)
