# A run of the reference implementation (docs/convergence.md), stated in full, nothing derived:
# DEIM-D-FINE N on BCCD's training split, evaluated on its test split.
_base_ = './bccd_from_scratch.py'

from deim_mmdet.engine import set_image_size

image_size = 320
iters_per_epoch, max_epochs, t1, t2, t3 = 25, 30, 2, 15, 27

recipe = None
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=4e-4))
schedule = dict(
    type='FlatCosineLR',
    by_epoch=False,
    warmup_iters=100,
    cosine_begin=t2 * iters_per_epoch,
    cosine_end=t3 * iters_per_epoch,
    lr_gamma=0.5,
)
param_scheduler = [schedule]
custom_hooks = [
    dict(type='DerivedSeedHook'),
    dict(type='DenseO2OScheduleHook', stages=(t1, t2, t3)),
    dict(type='ExpWarmupEMAHook', decay=0.998, warmup_iters=100),
    dict(type='NonFiniteLossHook', skip_non_finite=_base_.skip_non_finite),
    dict(type='CheckpointCheckHook'),
]

set_image_size(_base_, image_size)
