# D-FINE's recipe for pre-training L and X on Objects365. Single images are augmented to the end.
_base_ = './dfine.py'

recipe = dict(epochs=24, stages=(0, 0, 24), train_images=1742289)
train_cfg = dict(max_epochs=24)
