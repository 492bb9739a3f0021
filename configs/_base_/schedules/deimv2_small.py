# The published recipe of DEIMv2 Femto and Pico; Atto states what differs. These sizes have mosaics,
# and neither mixup nor copy-blend. Training restarts late in the no-augmentation stage.
_base_ = './deim.py'

recipe = dict(
    epochs=500,
    stages=(4, 250, 400),
    restart_epoch=468,
    matcher_change_epoch=450,
    warmup_iters=4000,
)
auto_scale_lr = dict(base_batch_size=128)
train_cfg = dict(max_epochs=500)
optim_wrapper = dict(
    optimizer=dict(lr=1.6e-3, weight_decay=1e-4),
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.', lr_mult=0.5),
            # As published: the scales of these norms decay.
            dict(name=r'^neck\.pool_convs\..*weight$'),
            dict(kind='norm', decay_mult=0.0),
            dict(kind='bias', decay_mult=0.0),
        ]
    ),
)
