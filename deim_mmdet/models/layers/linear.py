"""Linear layers and self-attention that can take their products from oneDNN on a CPU.

For :func:`torch.nn.functional.linear` torch takes MKL's, which on CPUs of AMD use half of the
vector units' width. oneDNN's, which torch has for its convolutions, use all of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ... import compat

_HAS_ONEDNN = compat.has_onednn_linear()
# Multiplications from which on oneDNN's product pays for laying out the weight.
_LARGE = 2**22


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear`, large products in single precision by oneDNN.

    Small ones, those in other types or on other devices, and what traces, compiles or casts get
    torch's own operator. Large ones can't be differentiated twice.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,).

    Returns:
        (..., O).
    """
    if not _fits_onednn(x, weight):
        return F.linear(x, weight, bias)
    product = _Product.apply if torch.is_grad_enabled() else compat.onednn_linear
    return product(x.flatten(0, -2), weight, bias).reshape(*x.shape[:-1], len(weight))


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        # The first, since compilers can't follow the others.
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


class Linear(nn.Linear):
    """:class:`torch.nn.Linear`; with ``by_onednn``, by :func:`onednn_linear`."""

    by_onednn = False

    def forward(self, x: Tensor) -> Tensor:
        linear = onednn_linear if self.by_onednn else F.linear
        return linear(x, self.weight, self.bias)


class SelfAttention(nn.MultiheadAttention):
    """Multi-head attention of tokens among themselves, positions added to queries and keys.

    Parameters are those of :class:`torch.nn.MultiheadAttention`. With ``by_onednn``, projections
    are by :func:`onednn_linear`.

    Args:
        embed_dims: D.
        num_heads: Attention heads.
    """

    by_onednn = False

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__(embed_dims, num_heads, batch_first=True)

    def forward(
        self, positioned: Tensor, tokens: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Tokens with positions and without, (B, N, D) each, to (B, N, D).

        Args:
            positioned: Of them, queries and keys are made.
            tokens: Of them, values are made.
            attn_mask: (N, N) bool, true where self-attention is forbidden.
        """
        linear = onednn_linear if self.by_onednn else F.linear
        dims = self.embed_dim
        weights = self.in_proj_weight.split([2 * dims, dims])
        biases = self.in_proj_bias.split([2 * dims, dims])
        queries, keys = linear(positioned, weights[0], biases[0]).chunk(2, dim=-1)
        values = linear(tokens, weights[1], biases[1])
        attended = attend(queries, keys, values, self.num_heads, attn_mask)
        return linear(attended, self.out_proj.weight, self.out_proj.bias)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    num_heads: int,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention of several heads, all (B, N, D).

    Args:
        attn_mask: (N, N) bool, true where it is forbidden.
    """
    queries, keys, values = (
        split_last(tokens, num_heads).transpose(1, 2) for tokens in (queries, keys, values)
    )
    attended = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=None if attn_mask is None else ~attn_mask,
        # Given as a number, it is a constant to an exporter that traces.
        scale=int(queries.shape[-1]) ** -0.5,
    )
    return attended.transpose(1, 2).flatten(2)


def split_last(tensor: Tensor, parts: int) -> Tensor:
    """(B, …, n) to (B, …, parts, n / parts).

    As ``unflatten``, but to an exporter that traces, B stays open and the others are constants.
    """
    *inner, last = (int(size) for size in tensor.shape[1:])
    return tensor.reshape(-1, *inner, parts, last // parts)
