# The published recipe of RT-DETRv2 R50 and R101, the baselines. Single images are augmented in all
# epochs. After its warm-up the learning rate is constant.
_base_ = './deim_rtdetrv2.py'

recipe = dict(epochs=72, stages=(0, 0, 72), lr_gamma=1.0)
train_cfg = dict(max_epochs=72)
optim_wrapper = dict(optimizer=dict(lr=1e-4))

# What differs from DEIM in a baseline's head, and in backbones of 50 and more layers.
baseline_head = dict(
    query_selection=dict(act='ReLU'),
    decoder=dict(query_position_channels=[512], act='ReLU'),
    criterion=dict(
        terms=dict(loss_cls=dict(loss=dict(type='VarifocalQualityLoss', alpha=0.75, gamma=2.0)))
    ),
)
frozen_backbone = dict(frozen_stem=True, norm_frozen=True)
