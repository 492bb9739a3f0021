# Own data of four channels, in arrays (.npy, height x width x channels) or TIFF files, also of 16
# bits. Pages of a TIFF are channels. The pretrained first convolution is adapted: best put red,
# green and blue first.
_base_ = '../deim_dfine_custom.py'

from deim_mmdet.engine import set_input_channels

# Mean and standard deviation of each channel, in the values of the files.
channel_means = [0, 0, 0, 0]
channel_deviations = [65535, 65535, 65535, 65535]
set_input_channels(_base_, channel_means, channel_deviations)
