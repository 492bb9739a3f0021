_base_ = [
    './_base_/models/rtdetrv2_resnetvd_r50_m.py',
    './_base_/datasets/coco_detection.py',
    './_base_/schedules/deim_rtdetrv2.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(type='DenseO2OMixUp'),
            dict(type='DenseO2OMultiScale', base_size_repeat=3),
        ]
    )
)
train_dataloader = dict(batch_size=4)
