"""The first convolution of a backbone for images of any number of channels."""

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

#: Channels of the images that weights are published for: red, green and blue.
RGB = 3


def input_channels(detector: nn.Module) -> int:
    """Number of channels of a detector's images; three where its backbone doesn't say it."""
    return getattr(getattr(detector, 'backbone', None), 'in_channels', RGB)


def adapt_input_channels(conv: nn.Conv2d) -> None:
    """Let a backbone's first convolution load weights that were trained on three channels.

    Whoever loads a file, the backbone alone or a whole detector, the weights change on the way, and
    the log says so. Weights that fit are loaded as they are.

    Args:
        conv: The convolution that the images come into.
    """
    conv.adapts_input_channels = True
    conv.register_load_state_dict_pre_hook(_adapt)


def adapted_weight(weight: Tensor, channels: int) -> tuple[Tensor, str]:
    """Weights for another number of input channels.

    One channel gets the sum over the three, so a grey image gives what it gives repeated three
    times. Of two, each gets half of the sum. More than three keep the first three, and each further
    one gets their mean.

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
    """Adapt what a checkpoint holds for first convolutions of ``model``, before it is checked."""
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
