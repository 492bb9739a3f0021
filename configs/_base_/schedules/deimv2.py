# The published recipe of DEIMv2 X. The other sizes state what differs. From matcher_change_epoch on
# the criterion's late_matcher pairs queries and objects.
_base_ = './deim.py'

recipe = dict(matcher_change_epoch=45)

# Batch augments before multi-scale. Copy-blend acts where mixup doesn't, also in the flat stage.
dense_augments = [dict(type='DenseO2OMixUp'), dict(type='DenseO2OCopyBlend')]
