# RT-DETR (arXiv 2304.08069) R50: no learning-rate warm-up, 72 epochs.
_base_ = './rtdetrv2_r50.py'

recipe = dict(warmup_iters=0)
optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.', lr_mult=0.1),
            dict(kind='norm', decay_mult=0.0),
            dict(kind='bias', decay_mult=0.0),
        ]
    )
)
