# Own data of grey pictures: one channel through pipeline and network instead of three equal ones.
_base_ = '../deim_dfine_custom.py'

from deim_mmdet.engine import set_input_channels

set_input_channels(_base_, mean=[0], std=[255], color_type='grayscale')
