# DEIM-D-FINE S with one level more, of stride 4, for small objects. docs/recipe.md says what the
# finer level costs. Try a larger image_size first.
_base_ = './deim_dfine_s.py'

model = dict(
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[64, 256, 512, 1024], feat_strides=[4, 8, 16, 32]),
    bbox_head=dict(
        in_channels=[256, 256, 256, 256],
        decoder=dict(num_points=[3, 3, 6, 3]),
    ),
)
