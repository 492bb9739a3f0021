# D-FINE: neither MAL nor Dense O2O, on crowded scenes.
_base_ = './_base_/study_crowded.py'

model = _base_.without_mal
recipe = _base_.without_dense_o2o
