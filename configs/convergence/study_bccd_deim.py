# DEIM: MAL and Dense O2O, on BCCD.
_base_ = './_base_/study.py'
