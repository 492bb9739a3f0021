# The published recipe of RT-DETRv2 R50 and R101, the baselines: augmentation of single images, no
# epochs without it, and a learning rate that stays as it is after its warm-up.
_base_ = './deim_rtdetrv2.py'

recipe = dict(epochs=72, stages=(0, 0, 72), lr_gamma=1.0)
train_cfg = dict(max_epochs=72)
optim_wrapper = dict(optimizer=dict(lr=1e-4))

# What a baseline's head has in place of DEIM's, and the backbones of 50 and more layers.
baseline_head = dict(
    query_selection=dict(act='ReLU'),
    decoder=dict(query_position_channels=[512], act='ReLU'),
    criterion=dict(
        terms=dict(loss_cls=dict(loss=dict(type='VarifocalQualityLoss', alpha=0.75, gamma=2.0)))
    ),
)
frozen_backbone = dict(frozen_stem=True, norm_frozen=True)
