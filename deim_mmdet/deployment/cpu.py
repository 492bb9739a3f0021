"""The form of models in which a CPU runs them fastest.

For :func:`torch.nn.functional.linear` torch takes MKL's matrix products. On AMD's CPUs these use
half of the vector units' width (torch 2.13). oneDNN's products, which torch has for its
convolutions, use all of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import compat
from ..models.layers.attention import SelfAttention
from ..utils.classes import exchange_classes

_HAS_ONEDNN = compat.has_onednn_linear()
# From this number of multiplications on, oneDNN's product pays for laying out the weight.
_LARGE = 2**22


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear`, with large products in single precision by oneDNN.

    Small products, other types and other devices get torch's own operator; so do tracing,
    compilation and autocast. Large products can't be differentiated twice.

    Args:
        x: (..., I), inputs of I channels.
        weight: (O, I), for O output channels.
        bias: (O,), added to each output; None adds nothing.

    Returns:
        (..., O).
    """
    if not _fits_onednn(x, weight):
        return F.linear(x, weight, bias)
    product = _Product.apply if torch.is_grad_enabled() else compat.onednn_linear
    return product(x.flatten(0, -2), weight, bias).reshape(*x.shape[:-1], len(weight))


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        # First, since compilers can't follow the other conditions.
        not torch.compiler.is_compiling()
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= _LARGE
        and _HAS_ONEDNN
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled('cpu')
        and not torch.jit.is_tracing()
    )


class _Product(torch.autograd.Function):
    """x · weightᵀ + bias, forward and backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return compat.onednn_linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return (
            compat.onednn_linear(grad, weight.t(), None) if needed[0] else None,
            compat.onednn_linear(grad.t(), x.t(), None) if needed[1] else None,
            grad.sum(0) if needed[2] else None,
        )


class OneDNNLinear(nn.Linear):
    """:class:`torch.nn.Linear` by :func:`onednn_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return onednn_linear(x, self.weight, self.bias)


class OneDNNSelfAttention(SelfAttention):
    """:class:`SelfAttention`, its projections by :func:`onednn_linear`."""

    linear = staticmethod(onednn_linear)


def optimize_for_cpu(model: nn.Module) -> nn.Module:
    """Let oneDNN's kernels do the convolutions and large linear layers of a model, in place.

    Linear layers and self-attention take oneDNN's products from then on; they stay the same
    modules. Weights of convolutions are laid out channels-last, and features follow them. With any
    other layout the kernels convert features before and after each convolution. Results change by
    rounding only.

    Args:
        model: Any model, also in training.

    Returns:
        The model itself.
    """
    exchange_classes(model, {nn.Linear: OneDNNLinear, SelfAttention: OneDNNSelfAttention})
    return model.to(memory_format=torch.channels_last)
