"""The form of models in which a CPU runs them fastest."""

import torch
from torch import nn

from .layers.linear import Linear, SelfAttention


def optimize_for_cpu(model: nn.Module) -> nn.Module:
    """Let oneDNN's kernels do the convolutions and large linear layers of a model, in place.

    Weights of convolutions are laid out channels-last, in which the features follow them; from any
    other layout the kernels convert features before and after each convolution. This package's
    linear layers leave MKL for oneDNN, see :func:`~.layers.linear.onednn_linear`. Results change by
    rounding only.

    Args:
        model: Any model; of others' linear layers, nothing changes.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(module, (Linear, SelfAttention)):
            module.by_onednn = True
    return model.to(memory_format=torch.channels_last)
