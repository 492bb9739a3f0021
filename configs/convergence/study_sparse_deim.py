# DEIM: MAL and Dense O2O, on scenes with one to three objects.
_base_ = './_base_/study_sparse.py'
