_base_ = [
    './_base_/models/ecdet_s.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/edgecrafter.py',
    './_base_/default_runtime.py',
]
