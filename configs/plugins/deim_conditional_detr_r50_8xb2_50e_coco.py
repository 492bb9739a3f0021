# Conditional DETR with MAL and Dense O2O.
_base_ = ['mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', './_base_/dense_o2o.py']

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
# Dense from the 4th to the 24th of 50 epochs; then Conditional DETR's own augmentation.
custom_hooks = [dict(type='DenseO2OScheduleHook', stages=(3, 24, 50))]
