# Dense O2O without MAL, on BCCD.
_base_ = './_base_/study.py'

model = _base_.without_mal
