# What the runs of docs/convergence.md share, on BCCD: nothing pretrained, one learning rate for
# all parameters, no decay on norms and biases, and one process, since runs side by side share
# cores.
_base_ = '../../deim_dfine_n_bccd.py'

model = dict(backbone=dict(init_cfg=None))
auto_scale_lr = dict(enable=False)
optim_wrapper = dict(
    paramwise_cfg=dict(rules=[dict(kind='norm', decay_mult=0.0), dict(kind='bias', decay_mult=0.0)])
)
# No restart from the best checkpoint: which one that is would be chosen on the test split.
custom_hooks = [
    dict(type='DerivedSeedHook'),
    dict(type='DenseO2OScheduleHook'),
    dict(type='ExpWarmupEMAHook'),
    dict(type='NonFiniteLossHook'),
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
