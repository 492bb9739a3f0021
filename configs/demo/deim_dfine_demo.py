# DEIM-D-FINE N from scratch on small pictures of digits, within minutes on two cores: what
# `make demo` trains. tools/demo/make_dataset.py writes the data.
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
        # Objects are few, and in pictures this small most of the time would go into the queries.
        query_selection=dict(num_queries=40),
        denoising=dict(num_queries=20),
        postprocess=dict(max_per_img=40),
    ),
)

# All else of the recipe is derived. The run is a hundredth as long as the published one and starts
# from nothing: Dense O2O begins once objects are found at all, and gets a smaller share; learning
# rates are not scaled down to the batch size, and the backbone's is that of the rest.
recipe = dict(stages=(40, 72, 120), lr_gamma=0.3)
auto_scale_lr = dict(enable=False)
# The last stage begins after epoch 9 and restarts from the best evaluated one, so that is one.
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
            # Up to 4 by default; digits would become smaller than a cell of the features.
            dict(type='DenseO2OZoomOut', ratio_range=(1.0, 2.0)),
            dict(type='DenseO2OIoUCrop'),
        ],
    ),
    # No mirror: handwriting has none.
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
# One worker: two cores are busy with training.
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

# The pipelines of validation and test are the base's.
set_image_size(_base_, image_size)
