# MAL without Dense O2O, on BCCD.
_base_ = './_base_/study.py'

recipe = _base_.without_dense_o2o
