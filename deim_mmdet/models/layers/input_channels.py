"""The first convolution of a backbone for images of any number of channels."""

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

#: Channels of the images that weights are published for: red, green and blue.
RGB = 3


def input_channels(detector: nn.Module) -> int:
    """Number of channels of a detector's images.

    Our backbones say it, as ``image_channels``, or else the mean of our data preprocessor. Others
    have three channels: ``in_channels`` of mmdet's backbones may be those of their last layer.
    """
    own = getattr(getattr(detector, 'backbone', None), 'image_channels', None)
    return own or getattr(getattr(detector, 'data_preprocessor', None), 'channels', None) or RGB


def adapt_input_channels(conv: nn.Conv2d) -> None:
    """Let a backbone's first convolution load weights that were trained on three channels.

    The weights change while they are loaded, from a file of the backbone alone or of a whole
    detector, and the log says so. Weights that fit are loaded as they are.

    Args:
        conv: The convolution that takes the images.
    """
    conv.adapts_input_channels = True
    conv.register_load_state_dict_pre_hook(_adapt)


def adapted_weight(weight: Tensor, channels: int) -> tuple[Tensor, str]:
    """Weights for another number of input channels.

    A single channel gets the sum over the three. So a grey image gives the same as an image with
    three equal channels. Each of two channels gets half of the sum. Of more than three channels,
    the first three keep theirs, and each further one gets their mean.

    Args:
        weight: (O, 3, h, w), O filters on red, green and blue.
        channels: Number of channels C.

    Returns:
        (O, C, h, w), and in words what was done.
    """
    if channels <= RGB:
        share = weight.sum(1, keepdim=True) / channels
        words = 'the sum of the three' if channels == 1 else f'1/{channels} of the sum of the three'
        return share.expand(-1, channels, -1, -1).clone(), words
    further = weight.mean(1, keepdim=True).expand(-1, channels - RGB, -1, -1)
    return torch.cat([weight, further], 1), 'the three, and their mean for each further one'


def adapt_checkpoint(model: nn.Module, state_dict: dict) -> None:
    """Adapt the weights of first convolutions in a checkpoint, before its shapes are checked.

    Args:
        model: The model that the checkpoint is for.
        state_dict: The checkpoint's parameters by the model's names, changed in place.
    """
    for name, module in model.named_modules():
        if getattr(module, 'adapts_input_channels', False):
            _adapt(module, state_dict, f'{name}.')


def _adapt(conv: nn.Conv2d, state_dict: dict, prefix: str, *_) -> None:
    name = f'{prefix}weight'
    weight = state_dict.get(name)
    if weight is None or weight.ndim != 4 or not weight.shape[1] == RGB != conv.in_channels:
        return
    if weight[:, :1].shape != conv.weight[:, :1].shape:
        # Another network's. Who loads it says so.
        return
    state_dict[name], words = adapted_weight(weight, conv.in_channels)
    print_log(
        f'{name}: trained on {RGB} channels, adapted to {conv.in_channels} ({words})',
        logger='current',
    )
