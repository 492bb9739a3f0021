# RT-DETR (arXiv 2304.08069) R18: no learning-rate warm-up, 72 epochs.
_base_ = './rtdetrv2_r18.py'

model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='DenseO2OMultiScale', base_size_repeat=3)])
)

recipe = dict(epochs=72, stages=(0, 0, 72), warmup_iters=0)
train_cfg = dict(max_epochs=72)
optim_wrapper = dict(
    paramwise_cfg=dict(
        rules=[
            dict(name=r'^backbone\.', kind='norm', lr_mult=0.1, decay_mult=0.0),
            dict(name=r'^backbone\.', lr_mult=0.1),
            dict(kind='norm', decay_mult=0.0),
            dict(kind='bias', decay_mult=0.0),
        ]
    )
)
