# DINO with MAL and Dense O2O.
_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', './_base_/dense_o2o.py']

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMixUp')]),
    bbox_head=dict(
        loss_cls=dict(_delete_=True, type='MatchabilityAwareLoss', gamma=1.5, loss_weight=1.0)
    ),
)
train_pipeline = [
    _base_.dense_o2o,
    *[transform for transform in _base_.train_pipeline if transform.type not in _base_.loading],
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='MultiImageMixDataset',
        dataset=dict(_base_.train_dataloader.dataset, pipeline=[]),
        pipeline=train_pipeline,
    )
)
# Dense from the second to the sixth of 12 epochs; then DINO's own augmentation.
custom_hooks = [dict(type='DenseO2OScheduleHook', stages=(1, 6, 12))]
