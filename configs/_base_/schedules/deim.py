# The published recipe of DEIM-D-FINE L and X. The other sizes state what differs. For shorter or
# longer training change max_epochs (or the batch size) and leave `recipe` alone. DEIMRunner derives
# stages, rates and durations from it and prints them.
recipe = dict(
    epochs=58,
    stages=(4, 29, 50),  # first epoch of the dense, flat and no-augmentation stage
    warmup_iters=2000,
    lr_gamma=0.5,
    ema_decay=0.9999,
    ema_warmup_iters=1000,
    ema_restart_decay=0.9999,  # from the restart on
)
# The batch size that `recipe` and the learning rate belong to.
auto_scale_lr = dict(enable=True, base_batch_size=32)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=58, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=1.25e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    constructor='RuleOptimWrapperConstructor',
    paramwise_cfg=dict(
        rules=[dict(name=r'^backbone\.', lr_mult=0.05), dict(kind='norm', decay_mult=0.0)]
    ),
)
param_scheduler = [dict(type='FlatCosineLR', by_epoch=False)]

# Steps with a NaN or an infinity that a run may leave out.
skip_non_finite = 0
custom_hooks = [
    dict(type='DerivedSeedHook'),
    dict(type='DenseO2OScheduleHook'),
    dict(type='ExpWarmupEMAHook'),
    dict(type='EMARestartHook'),
    dict(type='NonFiniteLossHook', skip_non_finite=skip_non_finite),
    dict(type='CheckpointCheckHook'),
    dict(type='AgreementHook'),
]

# The recipe of a training that starts from weights of Objects365, at the rate 2.5e-4. The rate
# stays constant, and the average of the weights needs no warm-up.
recipe_from_objects365 = dict(
    epochs=24, stages=(2, 12, 20), warmup_iters=0, lr_gamma=1.0, ema_warmup_iters=0
)
