# A run of the reference implementation, stated in full, nothing derived (docs/convergence.md):
# DEIM-D-FINE N on BCCD's training split, evaluated on its test split.
_base_ = './bccd_from_scratch.py'

image_size = 320
iters_per_epoch, max_epochs, t1, t2, t3 = 25, 30, 2, 15, 27

recipe = None
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=4e-4))
param_scheduler = [
    dict(
        type='FlatCosineLR',
        by_epoch=False,
        warmup_iters=100,
        cosine_begin=t2 * iters_per_epoch,
        cosine_end=t3 * iters_per_epoch,
        lr_gamma=0.5,
    )
]
custom_hooks = [
    _base_.custom_hooks[0],
    dict(type='DenseO2OScheduleHook', stages=(t1, t2, t3)),
    dict(type='ExpWarmupEMAHook', decay=0.998, warmup_iters=100),
    *_base_.custom_hooks[3:],
]

_base_.train_dataloader.dataset.pipeline[0].mosaic[0].tile_size = image_size // 2
_base_.train_dataloader.dataset.pipeline[0].mosaic[0].scale = (image_size, image_size)
_base_.train_dataloader.dataset.pipeline[2].scale = (image_size, image_size)
_base_.val_dataloader.dataset.pipeline[1].scale = (image_size, image_size)
_base_.test_dataloader.dataset.pipeline[1].scale = (image_size, image_size)
