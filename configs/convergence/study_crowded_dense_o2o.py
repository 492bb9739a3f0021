# Dense O2O without MAL, on crowded scenes.
_base_ = './_base_/study_crowded.py'

model = _base_.without_mal
