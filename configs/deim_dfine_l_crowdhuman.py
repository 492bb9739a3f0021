_base_ = [
    './_base_/models/dfine_hgnetv2_l.py',
    './_base_/datasets/crowdhuman.py',
    './_base_/schedules/deim.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(
        batch_augments=[
            dict(type='DenseO2OMixUp'),
            dict(type='DenseO2OMultiScale', base_size_repeat=4),
        ]
    ),
    # Some images show more than 300 people.
    bbox_head=dict(
        num_classes=1,
        query_selection=dict(num_queries=500),
        postprocess=dict(max_per_img=500),
    ),
)
default_hooks = dict(checkpoint=dict(save_best='crowd_human/mAP'))
