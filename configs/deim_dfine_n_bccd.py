# DEIM-D-FINE N on BCCD, 364 photographs of blood cells
# (https://github.com/Shenggan/BCCD_Dataset), in COCO format: images/ and
# annotations/{train,val,test}.json under data_root. docs/data.md converts it. For another folder:
# BCCD_ROOT=/path/to/bccd mim train …, or --cfg-options data_root=/path/to/bccd. For another size of
# the input, in training and testing alike: --cfg-options image_size=320.
_base_ = './deim_dfine_n.py'

data_root = '{{$BCCD_ROOT:data/bccd}}/'
classes = ('RBC', 'WBC', 'Platelets')

model = dict(bbox_head=dict(num_classes=len(classes)))
train_cfg = dict(max_epochs=72)

training_set = dict(
    data_root=data_root,
    metainfo=dict(classes=classes),
    ann_file='annotations/train.json',
    data_prefix=dict(img='images/'),
)
validation_set = dict(training_set, ann_file='annotations/val.json')
test_set = dict(training_set, ann_file='annotations/test.json')

train_dataloader = dict(batch_size=8, num_workers=2, dataset=dict(dataset=training_set))
val_dataloader = dict(num_workers=2, dataset=validation_set)
test_dataloader = dict(num_workers=2, dataset=test_set)
val_evaluator = dict(ann_file=data_root + validation_set['ann_file'])
test_evaluator = dict(ann_file=data_root + test_set['ann_file'])
