# https://www.objects365.org, version 2, as it is published: images in train/patch<n>/ and
# val/patch<n>/. tools/check_dataset.py --images lists images that your copy lacks.
_base_ = './coco_detection.py'

data_root = 'data/Objects365/'
training_set = dict(
    type='CheckedObjects365V2Dataset',
    data_root=data_root,
    ann_file='annotations/zhiyuan_objv2_train.json',
    data_prefix=dict(img='train/'),
)
validation_set = dict(
    training_set, ann_file='annotations/zhiyuan_objv2_val.json', data_prefix=dict(img='val/')
)

train_dataloader = dict(dataset=dict(dataset=training_set))
val_dataloader = dict(dataset=validation_set)
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root + validation_set['ann_file'])
test_evaluator = val_evaluator
