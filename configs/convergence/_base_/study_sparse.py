# The convergence study on scenes with one to three handwritten digits, which
# tools/analysis/convergence_study.py makes.
_base_ = './study.py'

data_root = 'work_dirs/convergence/data/sparse/'
classes = ('digit_0', 'digit_2', 'digit_3', 'digit_4')

model = dict(bbox_head=dict(num_classes=len(classes)))
training_set = dict(
    data_root=data_root,
    metainfo=dict(classes=classes),
    ann_file='train.json',
    data_prefix=dict(img='train/'),
)
validation_set = dict(training_set, ann_file='val.json', data_prefix=dict(img='val/'))
# No mirror images: handwriting has none.
train_pipeline = [
    dict(transform, prob=0.0) if transform.type == 'ContiguousRandomFlip' else transform
    for transform in _base_.train_dataloader.dataset.pipeline
]
train_dataloader = dict(dataset=dict(dataset=training_set, pipeline=train_pipeline))
val_dataloader = dict(dataset=validation_set)
test_dataloader = dict(dataset=validation_set)
val_evaluator = dict(ann_file=data_root + validation_set['ann_file'])
test_evaluator = val_evaluator
# An epoch takes ten times as long as on BCCD.
default_hooks = dict(checkpoint=dict(interval=1))
