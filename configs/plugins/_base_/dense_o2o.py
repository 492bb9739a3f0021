# Dense O2O for a detector of MMDetection. The configs beside this folder have this file as second
# base, and so can yours. `dense_o2o` replaces the transforms that load image and annotations, which
# `loading` names. The detector keeps all others. Without `single`, only the dense stage changes a
# sample.
custom_imports = dict(imports=['deim_mmdet'], allow_failed_imports=False)

dense_o2o = dict(
    type='DenseO2O',
    load=[dict(type='LoadImageChecked'), dict(type='LoadAnnotations', with_bbox=True)],
    mosaic=[dict(type='DenseO2OMosaic')],
    mosaic_prob=0.5,
)
loading = ('LoadImageFromFile', 'LoadAnnotations')
