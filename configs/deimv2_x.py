_base_ = [
    './_base_/models/deimv2_vit_x.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deimv2.py',
    './_base_/default_runtime.py',
]
