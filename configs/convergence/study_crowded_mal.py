# MAL without Dense O2O, on crowded scenes.
_base_ = './_base_/study_crowded.py'

recipe = _base_.without_dense_o2o
