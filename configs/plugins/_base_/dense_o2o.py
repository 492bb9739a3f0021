# Dense O2O for a detector of MMDetection's: the second base of the configs beside this folder, and
# of yours. `dense_o2o` takes the place of the transforms that load image and annotations, those of
# `loading`; all others stay the detector's own. Without `single`, only the dense stage changes a
# sample.
custom_imports = dict(imports=['deim_mmdet'], allow_failed_imports=False)

dense_o2o = dict(
    type='DenseO2O',
    load=[dict(type='LoadImageChecked'), dict(type='LoadAnnotations', with_bbox=True)],
    mosaic=[dict(type='DenseO2OMosaic')],
    mosaic_prob=0.5,
)
loading = ('LoadImageFromFile', 'LoadAnnotations')
