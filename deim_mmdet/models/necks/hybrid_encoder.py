"""Hybrid encoder of RT-DETR (arXiv 2304.08069), also in the forms of D-FINE and DEIMv2."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...utils.errors import UserError
from ..layers.attention import SelfAttention
from ..layers.basic import build_activation, project_levels, to_tokens
from ..layers.conv_norm import ConvNorm, set_with_cp, upsampled
from .fusion import RepCSPELANBlock, RepCSPLayer, SplitCSPLayer, check_sizes


class TransformerEncoderLayer(nn.Module):
    """Post-norm transformer encoder layer; the position is added to queries and keys only.

    Args:
        embed_dims: Width of the tokens.
        num_heads: Attention heads.
        ffn_channels: Width of the FFN.
        act: Activation of the FFN in mmcv's registry.
    """

    def __init__(self, embed_dims: int, num_heads: int, ffn_channels: int, act: str) -> None:
        super().__init__()
        self.self_attn = SelfAttention(embed_dims, num_heads)
        self.act = build_activation(act, of_tokens=True)
        self.linear1 = nn.Linear(embed_dims, ffn_channels)
        self.linear2 = nn.Linear(ffn_channels, embed_dims)
        self.norm1 = nn.LayerNorm(embed_dims)
        self.norm2 = nn.LayerNorm(embed_dims)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Refine N tokens of width D (B, N, D), given their positions (1, N, D)."""
        tokens = self.norm1(tokens + self.self_attn(tokens + position, tokens))
        return self.norm2(tokens + self.linear2(self.act(self.linear1(tokens))))


def sine_cosine_position(height: int, width: int, channels: int) -> Tensor:
    """2-D sine-cosine positions (1, height · width, channels), row by row, in float32 on the host.

    Channels are [sin(y ω), cos(y ω), sin(x ω), cos(x ω)], ω_i = 10000^(-i / (channels / 4)); their
    number is divisible by 4. The published networks have this table in float32, also where they
    compute in float64: its rounding moves DEIMv2's scores by 1e-3. The reference implementation
    transposes its table against its tokens, so that on its square inputs the vertical coordinate
    comes first. Here that coordinate comes first on inputs of any shape.
    """
    quarter = channels // 4
    omega = 1.0 / 10000.0 ** (torch.arange(quarter, dtype=torch.float32) / quarter)
    y = torch.arange(height, dtype=torch.float32)[:, None] * omega
    x = torch.arange(width, dtype=torch.float32)[:, None] * omega
    rows = torch.cat([y.sin(), y.cos()], dim=1)[:, None].expand(-1, width, -1)
    columns = torch.cat([x.sin(), x.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(1, height * width, channels)


# DEIMv2 fuses levels by sums, not by concatenation: options of its fusion blocks by kind.
_SUMS = dict(deimv2=dict(csp=SplitCSPLayer, convs=False), deimv2_n=dict(csp=SplitCSPLayer))


def _dfine_parts(kind: str, dims: int, expansion: float, num_blocks: int) -> tuple[Callable, ...]:
    """Builders of D-FINE's or DEIMv2's lateral convolution, fusion block and downsampling."""
    width = dims if kind in _SUMS else 2 * dims
    branch_channels = round(expansion * dims // 2)
    return (
        lambda: ConvNorm(dims, dims, 1),
        lambda: RepCSPELANBlock(width, dims, branch_channels, num_blocks, **_SUMS.get(kind, {})),
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
    """Attention on the coarsest level, then top-down and bottom-up fusion (RT-DETR and later).

    Args:
        in_channels: Channels of the backbone's levels, finest first.
        feat_strides: Strides of those levels in pixels; each is double the one before.
        out_channels: Channels of all outputs, divisible by 4 and by ``num_heads``.
        ffn_channels: Width of the FFN of the transformer layer.
        num_heads: Attention heads.
        expansion: Width of the fusion blocks' branches: relative to all of ``out_channels`` in
            'rtdetr', to half of them in the other kinds.
        depth: Factor of the 3 RepVGG blocks of each branch.
        act: Activation of the transformer layer: GELU, but SiLU in ECDet.
        kind: 'dfine' fuses by CSP-ELAN blocks and downsamples by a 1×1 and a depthwise
            convolution; 'rtdetr' fuses by one CSP layer and downsamples by a 3×3 convolution.
            'deimv2' is like 'dfine', but its blocks take sums of levels and have CSP layers of
            another kind without 3×3 convolutions. It leaves levels that have ``out_channels``
            channels unprojected. 'deimv2_n' is like 'deimv2', with these 3×3 convolutions.
        with_cp: Whether the backward pass joins concatenated features again instead of keeping
            them, which saves memory; see :func:`~deim_mmdet.models.layers.conv_norm.set_with_cp`.
        init_cfg: See :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: ``kind`` is unknown, strides don't fit the levels or each other, or
            ``out_channels`` is not divisible as said above.
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
        act: str = 'GELU',
        kind: str = 'dfine',
        with_cp: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if kind not in ('dfine', 'rtdetr', *_SUMS):
            raise UserError(
                f"HybridEncoder has no kind {kind!r}: choose 'dfine', 'rtdetr', 'deimv2' or "
                "'deimv2_n'"
            )
        if len(in_channels) != len(feat_strides):
            raise UserError(
                f'HybridEncoder needs one stride a level: got {len(in_channels)} in_channels '
                f'and {len(feat_strides)} feat_strides'
            )
        if any(coarse != 2 * fine for fine, coarse in pairwise(feat_strides)):
            raise UserError(
                'HybridEncoder needs feat_strides that double from level to level, finest first: '
                f'got {list(feat_strides)}'
            )
        if out_channels % 4 or out_channels % num_heads:
            raise UserError(
                'HybridEncoder needs an out_channels divisible by 4 and by num_heads: got '
                f'out_channels={out_channels}, num_heads={num_heads}'
            )
        dims = out_channels
        self.feat_strides = tuple(feat_strides)
        self.out_channels = out_channels
        self.sums = kind in _SUMS
        self.input_proj = nn.ModuleList(
            nn.Identity() if self.sums and c == dims else ConvNorm(c, dims, 1) for c in in_channels
        )
        self.encoder = TransformerEncoderLayer(dims, num_heads, ffn_channels, act)
        steps = len(in_channels) - 1
        num_blocks = round(3 * depth)
        lateral, block, downsample = (
            _rtdetr_parts(dims, expansion, num_blocks)
            if kind == 'rtdetr'
            else _dfine_parts(kind, dims, expansion, num_blocks)
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

    def _joined(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """Two levels (B, C, H, W) as a fusion block takes them: their sum, or both."""
        return (first + second,) if self.sums else (first, second)

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Levels l (B, C_l, H_l, W_l), finest first, to (B, ``out_channels``, H_l, W_l) each.

        Raises:
            ValueError: The image size is not divisible by the largest stride, or there are other
                levels than ``in_channels`` says.
        """
        feats = project_levels(self, feats)
        check_sizes(feats, self.feat_strides)
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
            fused.insert(0, block(*self._joined(upsampled(fused[0]), finer)))

        # Bottom-up: each step adds a coarser level behind.
        outputs = [fused[0]]
        for downsample, block, coarser in zip(
            self.downsample_convs, self.pan_blocks, fused[1:], strict=True
        ):
            outputs.append(block(*self._joined(downsample(outputs[-1]), coarser)))
        return tuple(outputs)
