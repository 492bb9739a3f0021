_base_ = [
    './_base_/models/dfine_hgnetv2_l.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deim.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(type='DenseO2OMixUp'),
            dict(type='DenseO2OMultiScale', base_size_repeat=4),
        ]
    )
)
