# What `make demo` trains: DEIM-D-FINE N from scratch on small pictures of digits, within minutes on
# two cores. tools/demo/make_dataset.py writes the data.
_base_ = '../deim_dfine_n.py'

from deim_mmdet.engine import set_image_size

data_root = 'work_dirs/demo/data/'
classes = ('digit_0', 'digit_2', 'digit_3', 'digit_4')
image_size = 128

model = dict(
    # Nothing is downloaded.
    backbone=dict(init_cfg=None),
    bbox_head=dict(
        num_classes=len(classes),
        # Objects are few. In such small pictures more queries would take most of the time.
        query_selection=dict(num_queries=40),
        denoising=dict(num_queries=20),
        postprocess=dict(max_per_img=40),
    ),
)

# The rest of the recipe is derived. The run has a hundredth of the published length and starts from
# nothing. So Dense O2O begins once objects are found at all, and gets a smaller share. Learning
# rates are not scaled down to the batch size. The backbone has the rate of the rest.
recipe = dict(stages=(40, 72, 120), lr_gamma=0.3)
auto_scale_lr = dict(enable=False)
# Epoch 9 is evaluated, as the last stage begins after it from the best evaluated epoch.
train_cfg = dict(max_epochs=12, val_interval=3)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(
        rules=[dict(kind='norm', decay_mult=0.0), dict(kind='bias', decay_mult=0.0)]
    ),
)

train_pipeline = [
    dict(
        type='DenseO2O',
        mosaic_prob=0.5,
        load=[dict(type='LoadImageChecked'), dict(type='LoadAnnotations', with_bbox=True)],
        mosaic=[
            dict(type='DenseO2OMosaic', tile_size=image_size // 2),
            dict(type='DenseO2OPhotometricDistort'),
        ],
        single=[
            dict(type='DenseO2OPhotometricDistort'),
            # The default goes up to 4: digits would be smaller than a cell of the features.
            dict(type='DenseO2OZoomOut', ratio_range=(1.0, 2.0)),
            dict(type='DenseO2OIoUCrop'),
        ],
    ),
    # No mirror images: handwriting has none.
    dict(type='Resize', scale=(image_size, image_size), keep_ratio=False),
    dict(type='DropTinyBoxes'),
    dict(type='PackDetImage'),
]
training_set = dict(
    data_root=data_root,
    metainfo=dict(classes=classes),
    ann_file='train.json',
    data_prefix=dict(img='train/'),
)
validation_set = dict(training_set, ann_file='val.json', data_prefix=dict(img='val/'))
# One worker, as training keeps two cores busy.
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(dataset=training_set, pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=30, num_workers=1, dataset=validation_set)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + validation_set['ann_file'])
test_evaluator = val_evaluator

default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=3, max_keep_ckpts=1))
log_processor = dict(window_size=20)
randomness = dict(seed=0)

# For validation and test, whose pipelines are the base's.
set_image_size(_base_, image_size)
