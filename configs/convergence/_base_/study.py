# The convergence study (docs/convergence.md): D-FINE's neck and head, narrower than N's and with
# fewer queries, on a ResNet-18 of a quarter of its width, at 224 x 224. train_cfg.max_epochs sets
# the length of a run; the rest of the recipe is derived from it. Both parts of DEIM are on. A file
# without one of them takes `without_mal` or `without_dense_o2o` and differs in nothing else. The
# data are BCCD, unless another file says so.
_base_ = './bccd_from_scratch.py'

from deim_mmdet.engine import set_image_size

image_size = 224

model = dict(
    # On one core it takes half the time of HGNetv2-B0.
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=16,
        stem_channels=16,
        out_indices=(2, 3),
        norm_eval=False,
    ),
    neck=dict(in_channels=[64, 128], out_channels=64, ffn_channels=128),
    bbox_head=dict(
        in_channels=[64, 64],
        embed_dims=64,
        query_selection=dict(num_queries=100),
        denoising=dict(num_queries=50),
        decoder=dict(num_points=[4, 4], num_layers=2, ffn_channels=128),
        postprocess=dict(max_per_img=100),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))

set_image_size(_base_, image_size)

# In place of the stages with Dense O2O.
without_dense_o2o = dict(stages=(0, 0, 148))
