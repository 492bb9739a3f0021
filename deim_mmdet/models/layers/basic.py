"""Small layers that backbones, necks and heads share."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from torch import Tensor, nn

from ...utils.errors import UserError
from .predictions import full_precision


class RMSNorm(nn.Module):
    """Root mean square norm of tokens (arXiv 1910.07467), computed in single precision at least.

    torch's ``RMSNorm`` has another name for its parameter than the published weights of DEIMv2, and
    rounds differently.

    Args:
        embed_dims: Width of the tokens.
        eps: Added to the mean square.
    """

    def __init__(self, embed_dims: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(embed_dims))

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise tokens (..., D); the result has the wider one of their type and the scale's."""
        wide = full_precision(tokens)
        mean_square = wide.square().mean(-1, keepdim=True)
        return (wide * (mean_square + self.eps).rsqrt()).to(tokens.dtype) * self.scale


class SwiGLU(nn.Module):
    """Gated activation ``silu(a) * b`` of the two halves (a, b) of the input (arXiv 2002.05202)."""

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., 2 · N) to (..., N)."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


def build_activation(act: str, of_tokens: bool = False) -> nn.Module:
    """Activation layer of a type in mmcv's registry.

    Args:
        act: The type, e.g. ``'SiLU'``.
        of_tokens: Whether the layer comes behind a linear layer.

    Raises:
        KeyError: The registry has no such type.
    """
    cfg = dict(type=act)
    if act == 'ReLU':
        # In place, as its gradient needs the output only. The gradient of SiLU needs the input.
        # What a linear layer makes of tokens is a view, for which the gradient would be copied.
        cfg['inplace'] = not of_tokens
    return build_activation_layer(cfg)


class MLP(nn.Module):
    """Linear layers with an activation between them.

    Args:
        channels: Widths from input to output; ``len(channels) - 1`` layers.
        act: Type of the activation in mmcv's registry.
    """

    def __init__(self, channels: Sequence[int], act: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(channels))
        self.act = build_activation(act, of_tokens=True)

    def zero_last(self) -> 'MLP':
        """Set the last layer to zero, so that the MLP starts as the constant 0."""
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


def init_scores(linear: nn.Linear) -> nn.Linear:
    """Set a layer's bias so that it scores everything 0.01 (focal loss, arXiv 1708.02002)."""
    nn.init.constant_(linear.bias, -math.log((1 - 0.01) / 0.01))
    return linear


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x`` in [0, 1]; ``x`` and ``1 - x`` are raised to at least ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def under_autocast(device: str) -> bool:
    """Whether autocast is at work on a type of device; some types don't know it."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class _Bounded(torch.autograd.Function):
    """``F.hardtanh`` that keeps its result for the backward pass instead of its input.

    Whether a number is within the bounds can be seen from either, and the next layer keeps the
    result, too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        return F.hardtanh(x, -bound, bound)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, out, -ctx.bound, ctx.bound), None


def bounded(x: Tensor, bound: float) -> Tensor:
    """Numbers, of any shape, cut to [-bound, bound]; at the bounds and beyond the gradient is 0.

    The gradient of ``clamp`` would take five kernels.
    """
    if x.requires_grad and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        return _Bounded.apply(x, bound)
    return F.hardtanh(x, -bound, bound)


def resized(features: Tensor, **options) -> Tensor:
    """``F.interpolate`` in the features' own type, also under autocast.

    Autocast lets a GPU interpolate in float32. What these features are joined with would be cast,
    too. The result, rounded once, would be the same.

    Args:
        features: (B, C, H, W).
        options: Of :func:`torch.nn.functional.interpolate`.

    Returns:
        (B, C, H', W').
    """
    device = features.device.type
    if not under_autocast(device):
        return F.interpolate(features, **options)
    with torch.autocast(device, enabled=False):
        return F.interpolate(features, **options)


def to_tokens(feature_map: Tensor) -> Tensor:
    """Turn a feature map (B, D, H, W) into tokens (B, H · W, D).

    The gradient that comes back is a slice of the gradient of all levels' tokens. It is copied for
    a single image, as its strides make torch 2.13's batch norm compute wrong gradients on a CPU.
    """
    if len(feature_map) == 1 and feature_map.requires_grad:
        feature_map.register_hook(Tensor.contiguous)
    return feature_map.flatten(2).transpose(1, 2)


def project_levels(owner: nn.Module, feats: Sequence[Tensor]) -> list[Tensor]:
    """Project each feature level to the width that a neck or a head works with.

    Args:
        owner: The neck or head; its ``input_proj`` has a projection for each level.
        feats: Levels l (B, C_l, H_l, W_l).

    Returns:
        (B, D, H_l, W_l) each.

    Raises:
        ValueError: There are more or fewer levels; the message names the owner and both numbers.
    """
    if len(feats) != len(owner.input_proj):
        raise UserError(
            f'{type(owner).__name__} gets {len(feats)} feature levels, but its in_channels are for '
            f'{len(owner.input_proj)}: give it the channels of each level, and its other options '
            'by level too'
        )
    return [proj(feat) for proj, feat in zip(owner.input_proj, feats, strict=True)]
