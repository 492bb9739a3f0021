# DEIM: MAL and Dense O2O, on crowded scenes.
_base_ = './_base_/study_crowded.py'
