# What the runs of docs/convergence.md on BCCD share: nothing is pretrained, all parameters have one
# learning rate, and norms and biases have no decay. Data are loaded in the training process, as
# runs side by side share cores.
_base_ = '../../deim_dfine_n_bccd.py'

model = dict(backbone=dict(init_cfg=None))
auto_scale_lr = dict(enable=False)
optim_wrapper = dict(
    paramwise_cfg=dict(rules=[dict(kind='norm', decay_mult=0.0), dict(kind='bias', decay_mult=0.0)])
)
# No restart from the best checkpoint: the test split would choose it.
custom_hooks = [
    dict(type='DerivedSeedHook'),
    dict(type='DenseO2OScheduleHook'),
    dict(type='ExpWarmupEMAHook'),
    dict(type='NonFiniteLossHook', skip_non_finite=_base_.skip_non_finite),
    dict(type='CheckpointCheckHook'),
]
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=_base_.test_set)
test_dataloader = dict(num_workers=0, persistent_workers=False)
val_evaluator = _base_.test_evaluator
# 25 iterations are an epoch of BCCD.
default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(interval=5, max_keep_ckpts=1, save_best=None)
)
log_processor = dict(window_size=25)
randomness = dict(seed=0)

# In place of MAL.
without_mal = dict(
    bbox_head=dict(
        criterion=dict(
            terms=dict(loss_cls=dict(loss=dict(type='VarifocalQualityLoss', alpha=0.75, gamma=2.0)))
        )
    )
)
