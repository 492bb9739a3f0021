custom_imports = dict(imports=['deim_mmdet'], allow_failed_imports=False)
default_scope = 'mmdet'
runner_type = 'DEIMRunner'

default_hooks = dict(
    runtime_info=dict(type='DeferredRuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='AtomicCheckpointHook',
        interval=1,
        max_keep_ckpts=3,
        save_best='coco/bbox_mAP',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='UniqueNameVisualizationHook'),
)

env_cfg = dict(
    # On a GPU, see docs/performance.md: try out algorithms of convolutions for each size, compute
    # products of float32 numbers in TF32, and lay out convolutions channels-last.
    cudnn_benchmark=True,
    tf32=True,
    channels_last=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
sync_bn = 'torch'

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

log_level = 'INFO'
load_from = None
resume = False
