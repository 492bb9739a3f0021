"""Parts of a vision transformer (ViT, arXiv 2010.11929) with DINOv3's rotary positions.

DINOv3: arXiv 2508.10104.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend, split_last
from .conv_norm import ConvNorm
from .input_channels import RGB, adapt_input_channels

#: What layer norms add to the variance; the key says whether the network has DINOv3's form.
NORM_EPS = {False: 1e-6, True: 1e-5}
#: Side of a patch in pixels.
PATCH = 16


class RotaryPositions(nn.Module):
    """Angles by which attention turns queries and keys, from the place of each patch.

    An axis is measured from -1 to 1, whatever the number of patches. A head's channels are pairs
    (i, i + half of them). The first half of the pairs turns with the row, the other half with the
    column, each pair with a period of its own.

    Args:
        head_dims: Channels of a head, a multiple of 4.
        base: The periods go from 1 up to nearly this.
        rescale: In training, each call measures the axes in another unit: places are multiplied by
            a factor drawn log-uniformly from 1 / ``rescale`` to ``rescale``. 1 for no change.

    Attributes:
        periods: (``head_dims`` / 4,) buffer; checkpoints hold it.
    """

    def __init__(self, head_dims: int, base: float = 100.0, rescale: float = 1.0) -> None:
        super().__init__()
        quarter = head_dims // 4
        self.register_buffer('periods', base ** (torch.arange(quarter) / quarter))
        self.rescale = rescale
        self._constants: dict[tuple, tuple[Tensor, tuple[Tensor, Tensor]]] = {}
        # A checkpoint may hold other periods.
        self.register_load_state_dict_pre_hook(_forget_constants)

    @property
    def varies(self) -> bool:
        """Whether each call has another factor."""
        return self.training and self.rescale > 1

    def forward(self, height: int, width: int, num_others: int) -> tuple[Tensor, Tensor]:
        """Tables for tokens without a place, and then for patches, row by row.

        Args:
            height: Number of rows of patches.
            width: Number of columns of patches.
            num_others: Number of tokens without a place; their angles are 0.

        Returns:
            Cosines, and sines whose first half has the opposite sign, as :func:`rotate` takes them:
            (``num_others`` + ``height`` · ``width``, 1, head_dims) each, in single precision or the
            precision of ``periods``, if that is higher.
        """
        angles, tables = self._angles_and_tables(height, width, num_others)
        if not self.varies:
            return tables
        exponent = torch.rand((), dtype=angles.dtype, device=angles.device) * 2 - 1
        return _tables(angles * self.rescale**exponent)

    # Compilers take these as constants. They would compile again once the cache has them.
    @torch.compiler.assume_constant_result
    def _angles_and_tables(
        self, height: int, width: int, num_others: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        key = (height, width, num_others, self.periods.device, self.periods.dtype)
        if key not in self._constants:
            # What inference_mode makes can't be used in training later.
            with torch.inference_mode(False), torch.no_grad():
                angles = self._angles(height, width, num_others)
                self._constants[key] = angles, _tables(angles)
        return self._constants[key]

    def _angles(self, height: int, width: int, num_others: int) -> Tensor:
        """Angles of the first half of a head's channels, 0 for tokens without a place."""
        periods = self.periods.to(torch.promote_types(self.periods.dtype, torch.float32))
        rows, columns = (
            (torch.arange(side, dtype=periods.dtype, device=periods.device) + 0.5) / side * 2 - 1
            for side in (height, width)
        )
        places = torch.cartesian_prod(rows, columns)
        angles = (2 * math.pi * places[..., None] / periods).flatten(1)
        return F.pad(angles, (0, 0, num_others, 0))[:, None]


def _tables(angles: Tensor) -> tuple[Tensor, Tensor]:
    sines = angles.sin()
    return torch.cat([angles.cos()] * 2, dim=-1), torch.cat([-sines, sines], dim=-1)


def _forget_constants(positions: RotaryPositions, *_) -> None:
    positions._constants.clear()


def rotate(tokens: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn pairs of channels by the angles of :class:`RotaryPositions`.

    Args:
        tokens: (B, N, heads, channels of a head).
        cosines: (N, 1, channels of a head), as ``sines``.
        sines: Those of the first half of the channels have the opposite sign.

    Returns:
        The same shape and type; it is rounded once.
    """
    first, second = tokens.chunk(2, dim=-1)
    partners = torch.cat([second, first], dim=-1)
    return (tokens * cosines + partners * sines).to(tokens.dtype)


class MaskedBiasLinear(nn.Linear):
    """A linear layer that multiplies its bias by a fixed mask.

    In DINOv3 it projects to queries, keys and values, and the keys have no bias.

    Args:
        in_features: Width of the input.
        out_features: Width of the output, divisible by 3.

    Attributes:
        bias_mask: (out,) buffer: 0 for the second third of the outputs, which are the keys, else 1.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        mask = torch.ones(3, out_features // 3)
        mask[1] = 0
        self.register_buffer('bias_mask', mask.flatten())

    def masked_bias(self) -> Tensor:
        """The bias that the layer adds, (out,)."""
        return self.bias * self.bias_mask

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.masked_bias())


class RotaryAttention(nn.Module):
    """Self-attention whose queries and keys are turned by :func:`rotate`.

    Args:
        embed_dims: Width of the tokens.
        num_heads: Attention heads.
        mask_bias: Whether keys have no bias (:class:`MaskedBiasLinear`).
    """

    def __init__(self, embed_dims: int, num_heads: int, mask_bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = (MaskedBiasLinear if mask_bias else nn.Linear)(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, tokens: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Attend among N tokens (B, N, D); ``tables`` are those of :class:`RotaryPositions`."""
        dims = int(tokens.shape[-1])
        queries_keys, values = self.qkv(tokens).split([2 * dims, dims], dim=-1)
        turned = rotate(split_last(queries_keys, 2 * self.num_heads), *tables).flatten(2)
        return self.proj(attend(*turned.chunk(2, dim=-1), values, self.num_heads))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them.

    Args:
        embed_dims: Width of input and output.
        hidden_dims: Width between the layers.
    """

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GatedFeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): one linear layer gates another, then comes a third.

    Args:
        embed_dims: Width of input and output.
        hidden_dims: Width of the gate and of what it gates.
    """

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(embed_dims, hidden_dims)
        self.w2 = nn.Linear(embed_dims, hidden_dims)
        self.w3 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class LayerScale(nn.Module):
    """Scales each channel (arXiv 2103.17239); it starts as nearly nothing.

    Args:
        dims: Number of channels.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dims,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class ViTBlock(nn.Module):
    """Attention, then a feed-forward layer, each behind a norm and added to its input.

    Args:
        embed_dims: Width of the tokens.
        num_heads: Attention heads.
        feed_forward: Function without arguments that makes the feed-forward layer.
        dinov3: Whether keys have no bias and both parts are scaled (:class:`LayerScale`).
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feed_forward: Callable[[], nn.Module],
        dinov3: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps=NORM_EPS[dinov3])
        self.attn = RotaryAttention(embed_dims, num_heads, mask_bias=dinov3)
        self.ls1 = LayerScale(embed_dims) if dinov3 else nn.Identity()
        self.norm2 = nn.LayerNorm(embed_dims, eps=NORM_EPS[dinov3])
        self.mlp = feed_forward()
        self.ls2 = LayerScale(embed_dims) if dinov3 else nn.Identity()

    def forward(self, tokens: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Refine tokens (B, N, D), given the tables of :class:`RotaryPositions` for them."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), tables))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class PatchEmbed(nn.Module):
    """One convolution that turns each square of 16×16 pixels into a token.

    Squares that begin in the image and go beyond it are filled up with zeros, as batches are.

    Args:
        embed_dims: Width D of the tokens.
        in_channels: Channels C of the images.
    """

    def __init__(self, embed_dims: int, in_channels: int = RGB) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dims, PATCH, stride=PATCH)
        adapt_input_channels(self.proj)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to (B, D, H / 16, W / 16), rounded up."""
        below, right = (-int(side) % PATCH for side in images.shape[-2:])
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        return self.proj(images)


class ConvStem(nn.Module):
    """Four 3×3 convolutions of stride 2 that turn 16×16 pixels into a token, as in ECViT.

    Args:
        embed_dims: Width D of the tokens.
        in_channels: Channels C of the images.
    """

    def __init__(self, embed_dims: int, in_channels: int = RGB) -> None:
        super().__init__()
        widths = [in_channels, embed_dims // 8, embed_dims // 4, embed_dims // 2]
        self.convs = nn.Sequential(
            *(ConvNorm(*widths[i : i + 2], 3, stride=2, act='ReLU') for i in range(3))
        )
        self.proj = nn.Conv2d(widths[-1], embed_dims, 3, stride=2, padding=1)
        adapt_input_channels(self.convs[0].conv)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to (B, D, H / 16, W / 16), rounded up."""
        return self.proj(self.convs(images))
