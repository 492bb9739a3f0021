# The published recipe of D-FINE L and X, the baselines: augmentation of single images up to the
# no-augmentation stage, and a learning rate that stays as it is after its warm-up.
recipe = dict(
    epochs=80,
    stages=(0, 0, 72),  # no warm-up and no dense stage
    warmup_iters=500,
    lr_gamma=1.0,
    ema_decay=0.9999,
    ema_warmup_iters=1000,
)
auto_scale_lr = dict(enable=True, base_batch_size=32)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=80, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.5e-4, betas=(0.9, 0.999), weight_decay=1.25e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    constructor='RuleOptimWrapperConstructor',
    paramwise_cfg=dict(
        rules=[dict(name=r'^backbone\.', lr_mult=0.05), dict(kind='norm', decay_mult=0.0)]
    ),
)
param_scheduler = [dict(type='FlatCosineLR', by_epoch=False)]

custom_hooks = [
    dict(type='DenseO2OScheduleHook'),
    dict(type='ExpWarmupEMAHook'),
    dict(type='NonFiniteLossHook'),
    dict(type='CheckpointCheckHook'),
]

# What a baseline's head has in place of DEIM's.
baseline_head = dict(
    act='ReLU',
    loss_cls=dict(
        _delete_=True, type='VarifocalQualityLoss', alpha=0.75, gamma=2.0, loss_weight=1.0
    ),
)
