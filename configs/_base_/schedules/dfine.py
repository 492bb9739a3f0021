# The published recipe of D-FINE L and X, the baselines. Single images are augmented up to the
# no-augmentation stage. After its warm-up the learning rate is constant.
_base_ = './deim.py'

recipe = dict(
    epochs=80,
    stages=(0, 0, 72),  # no warm-up and no dense stage
    warmup_iters=500,
    lr_gamma=1.0,
)
train_cfg = dict(max_epochs=80)
optim_wrapper = dict(optimizer=dict(lr=2.5e-4))

# What differs from DEIM in a baseline's head.
baseline_head = dict(
    query_selection=dict(act='ReLU'),
    decoder=dict(act='ReLU'),
    criterion=dict(
        terms=dict(loss_cls=dict(loss=dict(type='VarifocalQualityLoss', alpha=0.75, gamma=2.0)))
    ),
)
