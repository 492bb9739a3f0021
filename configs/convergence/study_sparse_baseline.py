# D-FINE: neither MAL nor Dense O2O, on scenes with one to three objects.
_base_ = './_base_/study_sparse.py'

model = _base_.without_mal
recipe = _base_.without_dense_o2o
