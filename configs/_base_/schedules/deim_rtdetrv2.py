# The published recipe of DEIM-RT-DETRv2 R50-m, R50 and R101.
_base_ = './deim.py'

recipe = dict(epochs=60, stages=(4, 34, 58), ema_warmup_iters=2000)
auto_scale_lr = dict(base_batch_size=16)
train_cfg = dict(max_epochs=60)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        rules=[dict(kind='norm', decay_mult=0.0), dict(name=r'^backbone\.', lr_mult=0.1)]
    ),
)
