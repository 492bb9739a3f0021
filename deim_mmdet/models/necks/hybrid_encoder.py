"""Hybrid encoder of RT-DETR (arXiv 2304.08069), also in the form that D-FINE gives it."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..layers.attention import SelfAttention
from ..layers.basic import ConvNorm, set_with_cp, to_tokens


class RepVGGBlock(nn.Module):
    """Sum of a 3×3 and a 1×1 convolution, each with its norm, then SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv1(x) + self.conv2(x))


class RepCSPLayer(nn.Module):
    """Sum of two 1×1 convolutions, one of which goes on through RepVGG blocks.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_blocks: Number of RepVGG blocks.
        hidden_channels: Width of both paths. Default: ``out_channels``. With another width, a 1×1
            convolution follows the sum.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        width = hidden_channels or out_channels
        self.conv1 = ConvNorm(in_channels, width, 1, act='SiLU')
        self.conv2 = ConvNorm(in_channels, width, 1, act='SiLU')
        self.bottlenecks = nn.Sequential(*(RepVGGBlock(width) for _ in range(num_blocks)))
        self.conv3 = (
            nn.Identity() if width == out_channels else ConvNorm(width, out_channels, 1, act='SiLU')
        )

    def forward(self, *features: Tensor) -> Tensor:
        """Features (B, C_i, H, W), concatenated along the channels, to (B, C, H, W)."""
        return self.conv3(self.bottlenecks(self.conv1(*features)) + self.conv2(*features))


class RepCSPELANBlock(nn.Module):
    """CSP-ELAN fusion block of D-FINE.

    A 1×1 convolution gives twice the output's width, split in halves. The second half goes through
    two branches, one after the other. Another 1×1 convolution reduces halves and branches.

    Args:
        in_channels: Channels of the concatenated input.
        out_channels: Channels of the output.
        branch_channels: Width of the two branches.
        num_blocks: Number of RepVGG blocks of each branch.
    """

    def __init__(
        self, in_channels: int, out_channels: int, branch_channels: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.cv1 = ConvNorm(in_channels, out_channels * 2, 1, act='SiLU')
        self.cv2 = self._branch(out_channels, branch_channels, num_blocks)
        self.cv3 = self._branch(branch_channels, branch_channels, num_blocks)
        self.cv4 = ConvNorm(out_channels * 2 + branch_channels * 2, out_channels, 1, act='SiLU')

    @staticmethod
    def _branch(in_channels: int, out_channels: int, num_blocks: int) -> nn.Sequential:
        return nn.Sequential(
            RepCSPLayer(in_channels, out_channels, num_blocks),
            ConvNorm(out_channels, out_channels, 3, act='SiLU'),
        )

    def forward(self, *features: Tensor) -> Tensor:
        """Features (B, C_i, H, W), concatenated along the channels, to (B, C, H, W)."""
        halves = self.cv1(*features).chunk(2, dim=1)
        branch1 = self.cv2(halves[1])
        branch2 = self.cv3(branch1)
        return self.cv4(*halves, branch1, branch2)


class TransformerEncoderLayer(nn.Module):
    """Post-norm transformer encoder layer; the position is added to queries and keys only."""

    def __init__(self, embed_dims: int, num_heads: int, ffn_channels: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(embed_dims, num_heads)
        self.linear1 = nn.Linear(embed_dims, ffn_channels)
        self.linear2 = nn.Linear(ffn_channels, embed_dims)
        self.norm1 = nn.LayerNorm(embed_dims)
        self.norm2 = nn.LayerNorm(embed_dims)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """N tokens of width D (B, N, D), with positions (1, N, D), to (B, N, D)."""
        tokens = self.norm1(tokens + self.self_attn(tokens + position, tokens))
        return self.norm2(tokens + self.linear2(F.gelu(self.linear1(tokens))))


def sine_cosine_position(height: int, width: int, channels: int) -> Tensor:
    """2-D sine-cosine positions (1, height * width, channels), rows first, in float64 on the host.

    Channels are [sin(y ω), cos(y ω), sin(x ω), cos(x ω)], ω_i = 10000^(-i / (channels / 4)). The
    reference implementation transposes its table against its tokens, so that on its square inputs
    the vertical coordinate comes first. Here it comes first on inputs of any shape.
    """
    quarter = channels // 4
    omega = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    y = torch.arange(height, dtype=torch.float64)[:, None] * omega
    x = torch.arange(width, dtype=torch.float64)[:, None] * omega
    rows = torch.cat([y.sin(), y.cos()], dim=1)[:, None].expand(-1, width, -1)
    columns = torch.cat([x.sin(), x.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(1, height * width, channels)


def _dfine_parts(dims: int, expansion: float, num_blocks: int) -> tuple[Callable, ...]:
    """Builders of D-FINE's lateral convolution, fusion block and downsampling."""
    branch_channels = round(expansion * dims // 2)
    return (
        lambda: ConvNorm(dims, dims, 1),
        lambda: RepCSPELANBlock(2 * dims, dims, branch_channels, num_blocks),
        lambda: nn.Sequential(
            ConvNorm(dims, dims, 1), ConvNorm(dims, dims, 3, stride=2, groups=dims)
        ),
    )


def _rtdetr_parts(dims: int, expansion: float, num_blocks: int) -> tuple[Callable, ...]:
    """Builders of RT-DETR's lateral convolution, fusion block and downsampling."""
    return (
        lambda: ConvNorm(dims, dims, 1, act='SiLU'),
        lambda: RepCSPLayer(2 * dims, dims, num_blocks, int(expansion * dims)),
        lambda: ConvNorm(dims, dims, 3, stride=2, act='SiLU'),
    )


@MODELS.register_module()
class HybridEncoder(BaseModule):
    """Attention on the coarsest level, then top-down and bottom-up fusion (RT-DETR, D-FINE).

    Args:
        in_channels: Channels of the backbone's levels, finest first.
        feat_strides: Strides of those levels in pixels.
        out_channels: Channels of all outputs.
        ffn_channels: Width of the FFN of the transformer layer.
        num_heads: Attention heads.
        expansion: Width of the fusion blocks' branches: relative to half of ``out_channels`` in
            'dfine', to all of them in 'rtdetr'.
        depth: Factor of the 3 RepVGG blocks of each branch.
        kind: 'dfine' fuses by CSP-ELAN blocks and downsamples by a 1×1 and a depthwise
            convolution; 'rtdetr' fuses by one CSP layer and downsamples by a 3×3 convolution.
        with_cp: Keep less for the backward pass; see
            :func:`~deim_mmdet.models.layers.basic.set_with_cp`.
        init_cfg: See :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: ``kind`` is unknown, or there isn't one stride for each level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        feat_strides: Sequence[int] = (8, 16, 32),
        out_channels: int = 256,
        ffn_channels: int = 1024,
        num_heads: int = 8,
        expansion: float = 1.0,
        depth: float = 1.0,
        kind: str = 'dfine',
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if kind not in ('dfine', 'rtdetr'):
            raise ValueError(f"HybridEncoder has no kind {kind!r}: choose 'dfine' or 'rtdetr'")
        if len(in_channels) != len(feat_strides):
            raise ValueError(
                f'HybridEncoder needs one stride a level: got {len(in_channels)} in_channels '
                f'and {len(feat_strides)} feat_strides'
            )
        dims = out_channels
        self.feat_strides = tuple(feat_strides)
        self.out_channels = out_channels
        self.input_proj = nn.ModuleList(ConvNorm(c, dims, 1) for c in in_channels)
        self.encoder = TransformerEncoderLayer(dims, num_heads, ffn_channels)
        steps = len(in_channels) - 1
        num_blocks = round(3 * depth)
        lateral, block, downsample = (
            _dfine_parts(dims, expansion, num_blocks)
            if kind == 'dfine'
            else _rtdetr_parts(dims, expansion, num_blocks)
        )
        self.lateral_convs = nn.ModuleList(lateral() for _ in range(steps))
        self.fpn_blocks = nn.ModuleList(block() for _ in range(steps))
        self.pan_blocks = nn.ModuleList(block() for _ in range(steps))
        self.downsample_convs = nn.ModuleList(downsample() for _ in range(steps))
        set_with_cp(self, with_cp)
        self._positions: dict[tuple, Tensor] = {}

    # Compilers take the table as a constant. They would compile again once the cache has it.
    @torch.compiler.assume_constant_result
    def _position(
        self, height: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Positions (1, ``height`` · ``width``, ``out_channels``)."""
        key = (height, width, dtype, device)
        if key not in self._positions:
            # Not every device has 64-bit numbers.
            table = sine_cosine_position(height, width, self.out_channels).to(dtype)
            self._positions[key] = table.to(device)
        return self._positions[key]

    def _check_sizes(self, feats: Sequence[Tensor]) -> None:
        sizes = [(int(feat.shape[-2]), int(feat.shape[-1])) for feat in feats]
        coarsest, stride = sizes[-1], self.feat_strides[-1]
        for size, feat_stride in zip(sizes, self.feat_strides, strict=True):
            ratio = stride // feat_stride
            if size != (coarsest[0] * ratio, coarsest[1] * ratio):
                height, width = (n * self.feat_strides[0] for n in sizes[0])
                raise ValueError(
                    f'the input of about {width}x{height} pixels is not divisible by {stride} on '
                    'both sides: change the scale of the Resize in the pipeline, or set '
                    f'data_preprocessor.pad_size_divisor={stride}'
                )

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Levels l (B, C_l, H_l, W_l), finest first, to (B, ``out_channels``, H_l, W_l) each.

        Raises:
            ValueError: The image size is not divisible by the largest stride.
        """
        self._check_sizes(feats)
        feats = [proj(feat) for proj, feat in zip(self.input_proj, feats, strict=True)]
        coarsest = feats[-1]
        # Exporters that trace take plain numbers, and so the table, as constants.
        height, width = int(coarsest.shape[-2]), int(coarsest.shape[-1])
        positions = self._position(height, width, coarsest.dtype, coarsest.device)
        tokens = self.encoder(to_tokens(coarsest), positions)
        # On a GPU the norm's output is in float32, under autocast too.
        feats[-1] = tokens.to(coarsest.dtype).transpose(1, 2).reshape(coarsest.shape)

        # Top-down: each step adds a finer level in front.
        fused = [feats[-1]]
        for lateral, block, finer in zip(
            self.lateral_convs, self.fpn_blocks, reversed(feats[:-1]), strict=True
        ):
            fused[0] = lateral(fused[0])
            upsampled = F.interpolate(fused[0], scale_factor=2.0, mode='nearest')
            fused.insert(0, block(upsampled, finer))

        # Bottom-up: each step adds a coarser level behind.
        outputs = [fused[0]]
        for downsample, block, coarser in zip(
            self.downsample_convs, self.pan_blocks, fused[1:], strict=True
        ):
            outputs.append(block(downsample(outputs[-1]), coarser))
        return tuple(outputs)
