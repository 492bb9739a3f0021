"""Modules that compute the same as those of a trained model, with fewer or cheaper operations."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.backbones.hgnetv2 import Block, ConvBNAct
from ..models.layers.attention import SelfAttention, attend, split_last
from ..models.layers.decoder import DeformableCrossAttention
from ..ops import deformable_attention


class Clamp(nn.Module):
    """Limits values to [low, high], in place; it replaces an activation.

    Args:
        low: Lower bound; -∞ for none.
        high: Upper bound; ∞ for none.
    """

    def __init__(self, low: float = -math.inf, high: float = math.inf) -> None:
        super().__init__()
        self.low = None if low == -math.inf else low
        self.high = None if high == math.inf else high

    def extra_repr(self) -> str:
        return f'low={self.low}, high={self.high}'

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_(self.low, self.high)


class FusedSelfAttention(nn.Module):
    """:class:`SelfAttention` in evaluation, made of linear layers, which exporters know."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        dims = attention.embed_dim
        weights = attention.in_proj_weight.split([2 * dims, dims])
        biases = attention.in_proj_bias.split([2 * dims, dims])
        self.num_heads = attention.num_heads
        self.query_key = as_linear(weights[0], biases[0])
        self.value = as_linear(weights[1], biases[1])
        self.out_proj = attention.out_proj

    def forward(self, positioned: Tensor, tokens: Tensor, attn_mask: None = None) -> Tensor:
        """Tokens with positions and without, (B, N, D) each, to (B, N, D): N tokens of width D."""
        queries, keys = self.query_key(positioned).chunk(2, dim=-1)
        return self.out_proj(attend(queries, keys, self.value(tokens), self.num_heads))


class FusedCrossAttention(nn.Module):
    """:class:`DeformableCrossAttention`; one matrix product gives offsets and weights.

    The scales of the points are part of that product's parameters. On a CPU another product, with
    zeros and ones, repeats centres and sizes of the reference boxes for every sample: runtimes
    broadcast over the pairs (x, y) ten times slower. Elsewhere products may have fewer digits than
    boxes need.
    """

    def __init__(self, attention: DeformableCrossAttention) -> None:
        super().__init__()
        self.num_heads, self.num_points = attention.num_heads, attention.num_points
        self.method = attention.method
        offsets, weights = attention.sampling_offsets, attention.attention_weights
        samples = self.num_heads * sum(self.num_points)
        # The order of the offsets is by heads, then points, then (x, y).
        scale = attention.steps_per_side.reciprocal().expand(-1, 2).to(weights.weight.dtype)
        scale = scale.flatten().repeat(self.num_heads)
        self.samples = as_linear(
            torch.cat([offsets.weight * scale[:, None], weights.weight]),
            torch.cat([offsets.bias * scale, weights.bias]),
        )
        self.split = [2 * samples, samples]
        # D-FINE's attention has no projections.
        self.value_proj = getattr(attention, 'value_proj', nn.Identity())
        self.output_proj = getattr(attention, 'output_proj', nn.Identity())
        pairs = torch.eye(2, dtype=offsets.weight.dtype, device=offsets.weight.device)
        pairs = pairs.repeat(samples, 1)
        self.register_buffer('repeat', torch.block_diag(pairs, pairs), persistent=False)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """See :meth:`DeformableCrossAttention.forward`."""
        offsets, weights = self.samples(query).split(self.split, dim=-1)
        attended = deformable_attention(
            split_last(self.value_proj(memory), self.num_heads),
            spatial_shapes,
            self._locations(offsets, references),
            split_last(weights, self.num_heads).softmax(-1),
            self.num_points,
            self.method,
        )
        # In a model of half precision the samples are in the precision of the boxes.
        return self.output_proj(attended.to(query.dtype))

    def _locations(self, offsets: Tensor, references: Tensor) -> Tensor:
        """Points (B, Q, heads, Σ n_l, 2) at scaled offsets (B, Q, heads · Σ n_l · 2)."""
        single = references.device.type == 'cpu' and not torch.is_autocast_enabled('cpu')
        if single and references.dtype == self.repeat.dtype:
            centres, sizes = F.linear(references, self.repeat).chunk(2, dim=-1)
            locations = split_last(centres + offsets * sizes, self.num_heads)
            return split_last(locations, sum(self.num_points))
        centres, sizes = references[:, :, None].split(2, dim=-1)
        locations = torch.addcmul(centres, offsets.unflatten(-1, (-1, 2)), sizes)
        return locations.unflatten(2, (self.num_heads, -1))


class SplitConvolution(nn.Module):
    """The convolution of two concatenated features, and its ReLU, as a sum of two convolutions.

    Runtimes merge the sum into a convolution. Concatenation costs more, and their convolutions are
    slow on many channels at once.

    Args:
        layer: The convolution, fused, with a ReLU or a lower bound.
        width: Number of channels of the first features.
        following: The 1×1 convolution after it, whose bias is changed.
    """

    def __init__(self, layer: ConvBNAct, width: int, following: nn.Conv2d) -> None:
        super().__init__()
        # Runtimes can't merge a bound b other than 0. It is b + max(y − b, 0), and the next
        # convolution's bias takes in the first b.
        bound = layer.act.low if isinstance(layer.act, Clamp) else 0.0
        following.bias.add_(following.weight.sum((1, 2, 3)) * bound)
        self.of_first = _part_of(layer.conv, slice(width), layer.conv.bias - bound)
        self.of_second = _part_of(layer.conv, slice(width, None), None)

    @staticmethod
    def can_split(layer: ConvBNAct) -> bool:
        """Whether the layer's activation is a ReLU or a lower bound."""
        return not (isinstance(layer.act, Clamp) and layer.act.low is None)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The output (B, C, H', W') for features (B, C_1, H, W) and (B, C_2, H, W)."""
        return (self.of_second(second) + self.of_first(first)).relu()


class SplitBlock(nn.Module):
    """A residual block of HGNetv2 whose wide input is not concatenated with its layers' outputs."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        squeeze, self.expand = block.aggregation
        self.layers = block.layers
        width = self.expand.conv.out_channels
        self.squeeze = SplitConvolution(squeeze, width, self.expand.conv)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return self.expand(self.squeeze(x, torch.cat(outputs[1:], dim=1))) + x


def _part_of(conv: nn.Conv2d, channels: slice, bias: Tensor | None) -> nn.Conv2d:
    """The part of a convolution that takes some of the input's channels."""
    weight = conv.weight[:, channels].contiguous()
    part = nn.Conv2d(
        weight.shape[1], weight.shape[0], conv.kernel_size, conv.stride, conv.padding,
        bias=bias is not None, device='meta',
    )  # fmt: skip
    part.weight = nn.Parameter(weight, requires_grad=False)
    part.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return part


class BoundedLayerNorm(nn.Module):
    """A layer norm whose input is limited to a bound that no token reaches.

    The bound keeps ONNX Runtime (1.32) from merging the norm with the sum before it, into an
    operator that takes ten times as long as both.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        bound = min(1e30, torch.finfo(tokens.dtype).max)
        return self.norm(tokens.clamp(-bound, bound))


class TokenLinear(nn.Module):
    """A linear layer that gets tokens (B, …, D), of width D, as one matrix.

    Runtimes add the bias within the product of two matrices. With more dimensions they add it
    afterwards.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, tokens: Tensor) -> Tensor:
        *inner, last = (int(size) for size in tokens.shape[1:])
        return self.linear(tokens.reshape(-1, last)).reshape(-1, *inner, self.linear.out_features)


def as_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with given weight (out, in) and bias (out,), without gradients."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device='meta')
    linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear
