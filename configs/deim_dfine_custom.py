# DEIM-D-FINE on your own data in COCO format. Copy this file and change the part above the line.
# Everything below follows from it. Train and test with
#
#     mim train deim_mmdet my_config.py
#     mim test deim_mmdet my_config.py --checkpoint work_dirs/my_config/epoch_<n>.pth

# The size: n, s, m, l or x.
_base_ = './deim_dfine_s.py'

# Names of the classes, as in `categories` of the annotation files. Order and ids may differ there.
classes = ('cat', 'dog')

# Annotation files and image folders, relative to data_root.
data_root = 'data/custom/'
train_annotations = 'annotations/train.json'
train_images = 'images/train/'
val_annotations = 'annotations/val.json'
val_images = 'images/val/'

# Side of the network's input in pixels, divisible by 32; or (height, width).
image_size = 640
# Whether images keep their proportions in the input, with a padding, or are stretched to its size.
keep_ratio = False

# The recipe follows from these. Before training starts, stages of the augmentation, learning rates,
# warm-ups and EMA are derived and printed. Train at least 4 epochs. batch_size is per process.
max_epochs = 60
batch_size = 8
num_workers = 4

# Weights to start from, or None for a backbone trained on ImageNet.
load_from = None

# The two parts of DEIM, and what docs/convergence.md found. From 1500 iterations (epochs times
# batches) on, MAL alone lowered mean AP by 0.002 at most. From nothing, Dense O2O raised AP with
# 2000 images from 1500 iterations on, and with 205 images from 3000 on. With 205 images it lowered
# AP in 1500 iterations, and both parts together lowered it in 750: leave Dense O2O out there. In
# between, try both ways. From weights Dense O2O lowered AP in 200 iterations on 50 to 205 images;
# in 1500 it changed little there.
mal = True
dense_o2o = True

# ------------------------------------------------------------------------------------------------

import os.path as osp

from deim_mmdet.engine import keep_aspect_ratio, set_image_size

model = dict(bbox_head=dict(num_classes=len(classes)))
if not mal:
    model['bbox_head']['criterion'] = dict(
        terms=dict(loss_cls=dict(loss=dict(type='VarifocalQualityLoss', alpha=0.75, gamma=2.0)))
    )
if not dense_o2o:
    # The last stage, without augmentation, begins in the same epoch as with Dense O2O.
    recipe = dict(stages=(0, 0, max(_base_.recipe.stages)))
train_cfg = dict(max_epochs=max_epochs)

training_set = dict(
    data_root=data_root,
    metainfo=dict(classes=classes),
    ann_file=train_annotations,
    data_prefix=dict(img=train_images),
)
validation_set = dict(training_set, ann_file=val_annotations, data_prefix=dict(img=val_images))
workers = dict(num_workers=num_workers, persistent_workers=num_workers > 0)
train_dataloader = dict(batch_size=batch_size, dataset=dict(dataset=training_set), **workers)
val_dataloader = dict(batch_size=batch_size, dataset=validation_set, **workers)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=osp.join(data_root, val_annotations))
test_evaluator = val_evaluator

# This sets the size in the base's pipelines, mosaics and multi-scale training.
set_image_size(_base_, image_size)
if keep_ratio:
    keep_aspect_ratio(_base_)
