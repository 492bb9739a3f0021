# D-FINE N in the comparison with the reference implementation on BCCD: VFL, ReLU, no Dense O2O, and
# a constant learning rate.
_base_ = './_base_/bccd_reproduction.py'

model = dict(
    bbox_head=dict(
        _base_.without_mal.bbox_head,
        query_selection=dict(act='ReLU'),
        decoder=dict(act='ReLU'),
    )
)
param_scheduler = [dict(_base_.schedule, lr_gamma=1.0)]
custom_hooks = [
    dict(hook, stages=(0, 0, _base_.t3)) if hook.type == 'DenseO2OScheduleHook' else hook
    for hook in _base_.custom_hooks
]
