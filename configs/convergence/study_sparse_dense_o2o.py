# Dense O2O without MAL, on scenes with one to three objects.
_base_ = './_base_/study_sparse.py'

model = _base_.without_mal
