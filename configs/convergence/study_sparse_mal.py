# MAL without Dense O2O, on scenes with one to three objects.
_base_ = './_base_/study_sparse.py'

recipe = _base_.without_dense_o2o
