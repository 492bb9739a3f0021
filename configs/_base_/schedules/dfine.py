# The published recipe of D-FINE L and X, the baselines: augmentation of single images up to the
# no-augmentation stage, and a learning rate that stays as it is after its warm-up.
_base_ = './deim.py'

recipe = dict(
    epochs=80,
    stages=(0, 0, 72),  # no warm-up and no dense stage
    warmup_iters=500,
    lr_gamma=1.0,
)
train_cfg = dict(max_epochs=80)
optim_wrapper = dict(optimizer=dict(lr=2.5e-4))

# What a baseline's head has in place of DEIM's.
baseline_head = dict(
    query_selection=dict(act='ReLU'),
    decoder=dict(act='ReLU'),
    criterion=dict(
        terms=dict(loss_cls=dict(loss=dict(type='VarifocalQualityLoss', alpha=0.75, gamma=2.0)))
    ),
)
