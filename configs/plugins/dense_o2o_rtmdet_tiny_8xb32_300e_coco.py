# RTMDet with Dense O2O in place of its own mosaic and mixup, in the same 280 epochs.
_base_ = ['mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', './_base_/dense_o2o.py']

model = dict(data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMixUp')]))
# RTMDet's last pipeline. Its crop must allow a mosaic that is left without objects.
train_pipeline = [
    _base_.dense_o2o,
    *[
        dict(transform, allow_negative_crop=True) if transform.type == 'RandomCrop' else transform
        for transform in _base_.train_pipeline_stage2
        if transform.type not in _base_.loading
    ],
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='MultiImageMixDataset',
        dataset=dict(_base_.train_dataloader.dataset, pipeline=[]),
        pipeline=train_pipeline,
    )
)
# RTMDet's EMA stays. The schedule replaces its PipelineSwitchHook.
custom_hooks = [
    *[hook for hook in _base_.custom_hooks if hook.type == 'EMAHook'],
    dict(type='DenseO2OScheduleHook', stages=(0, 280, 300)),
]
