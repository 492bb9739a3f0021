# https://www.crowdhuman.org, laid out as mmdet's CrowdHumanDataset expects it.
_base_ = './coco_detection.py'

data_root = 'data/CrowdHuman/'
training_set = dict(
    type='CrowdHumanDataset',
    data_root=data_root,
    ann_file='annotation_train.odgt',
    data_prefix=dict(img='Images/'),
)
validation_set = dict(training_set, ann_file='annotation_val.odgt')

train_dataloader = dict(dataset=dict(dataset=training_set))
val_dataloader = dict(dataset=validation_set)
test_dataloader = val_dataloader

val_evaluator = dict(
    _delete_=True,
    type='CrowdHumanMetric',
    ann_file=data_root + validation_set['ann_file'],
    metric=['AP', 'MR', 'JI'],
)
test_evaluator = val_evaluator
