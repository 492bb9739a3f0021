# EdgeCrafter's recipe (arXiv 2603.18739), as published for ECDet L and X: Dense O2O in the first
# half, then augmented single images, and two epochs without augmentation. Any model may have this
# recipe in place of its own; set_dense_o2o(_base_, mosaic_prob=...) sets the share of mosaics.
_base_ = './deim.py'

recipe = dict(kind='edgecrafter', epochs=50, stages=(0, 24, 48))
train_cfg = dict(max_epochs=50)

# Batch augments of the dense stage; S and M have 0.75. All batches have the size of the input.
dense_augments = [dict(type='DenseO2OMixUp', prob=1.0)]
