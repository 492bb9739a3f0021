data_root = 'data/coco/'
# Side of the network's input in pixels. A config that inherits this one changes it by
# set_image_size(_base_, 320), or by image_size = 320 where DEIMRunner trains or tests with it.
image_size = 640
# The size in the pipelines below; set_image_size keeps it up to date.
applied_image_size = image_size
# Share of mosaics in the dense stage, and the least width and height of a box in pixels of the
# input. A config that inherits this one changes them by set_dense_o2o(_base_, mosaic_prob=0.75).
mosaic_prob = 0.5
min_box_size = 1

# What DenseO2O does with a sample depends on the stage (warm-up, dense, flat, no-augmentation).
# DenseO2OScheduleHook sets the stage.
train_pipeline = [
    dict(
        type='DenseO2O',
        mosaic_prob=mosaic_prob,
        min_size=min_box_size,
        load=[dict(type='LoadImageChecked'), dict(type='LoadAnnotations', with_bbox=True)],
        mosaic=[
            dict(
                type='DenseO2OMosaic',
                tile_size=image_size // 2,
                scale=(image_size, image_size),
            ),
            dict(type='DenseO2OPhotometricDistort'),
        ],
        single=[
            dict(type='DenseO2OPhotometricDistort'),
            dict(type='DenseO2OZoomOut'),
            dict(type='DenseO2OIoUCrop'),
        ],
    ),
    dict(type='ContiguousRandomFlip', prob=0.5),
    dict(type='Resize', scale=(image_size, image_size), keep_ratio=False),
    dict(type='DropTinyBoxes', min_size=min_box_size),
    dict(type='PackDetImage'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(image_size, image_size), keep_ratio=False),
    dict(type='ScaleInstances'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetImage',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='stack_images'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='DenseO2ODataset',
        dataset=dict(
            type='CheckedCocoDataset',
            data_root=data_root,
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            filter_cfg=dict(filter_empty_gt=False),
            # Empty: DenseO2O loads the images, and the other ones of a mosaic only where needed.
            pipeline=[],
        ),
        pipeline=train_pipeline,
    ),
)
# Without collate_fn: with one, DetInferencer fails (mmengine 0.10.7, BaseInferencer._init_collate).
# DEIMRunner stacks these images, too.
test_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CheckedCocoDataset',
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_dataloader = dict(test_dataloader, collate_fn=dict(type='stack_images'))

val_evaluator = dict(
    type='CheckedCocoMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric='bbox',
    format_only=False,
)
test_evaluator = val_evaluator
