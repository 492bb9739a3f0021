"""HGNetv2, the backbone of D-FINE (PP-HGNetV2 of PaddleClas, D-FINE arXiv 2410.13842)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...utils.errors import UserError
from ..layers.affine import LearnableAffine
from ..layers.conv_norm import ConvNorm, address_of, freeze_norms, set_with_cp
from ..layers.freezing import FreezesStages
from ..layers.input_channels import RGB, adapt_input_channels


class StageSpec(NamedTuple):
    """A stage of ``num_blocks`` blocks with ``num_layers`` layers each.

    ``mid_channels`` are those of each layer. With ``downsample`` a convolution of stride 2 comes
    first. The layers are :class:`LightConvBNAct` with ``light``, else :class:`ConvBNAct`.
    """

    in_channels: int
    mid_channels: int
    out_channels: int
    num_blocks: int
    downsample: bool
    light: bool
    kernel_size: int
    num_layers: int


class ArchSpec(NamedTuple):
    """Widths of the stem (its first convolutions, its output) and the stages."""

    stem: tuple[int, int]
    stages: tuple[StageSpec, ...]


def _arch(
    stem: tuple[int, int], num_layers: int, *stages: tuple[int, int, int, int], kernel_size: int = 5
) -> ArchSpec:
    """Fill in what all sizes share: stage 1 keeps the resolution, stages 3 and 4 are light.

    ``kernel_size`` is that of the light stages.
    """
    return ArchSpec(
        stem,
        tuple(
            StageSpec(*widths, downsample=i > 0, light=i > 1,
                      kernel_size=kernel_size if i > 1 else 3, num_layers=num_layers)
            for i, widths in enumerate(stages)
        ),
    )  # fmt: skip


# Of each stage: channels of the input, inside and of the output; number of blocks.
# fmt: off
ARCHS = {
    # The first stages of B0, and a narrower or shorter third (DEIMv2, arXiv 2509.20787).
    'Atto': _arch((16, 16), 3,
                  (16, 16, 64, 1), (64, 32, 256, 1), (256, 64, 256, 1), kernel_size=3),
    'Femto': _arch((16, 16), 3, (16, 16, 64, 1), (64, 32, 256, 1), (256, 64, 512, 1)),
    'Pico': _arch((16, 16), 3, (16, 16, 64, 1), (64, 32, 256, 1), (256, 64, 512, 2)),
    'B0': _arch((16, 16), 3,
                (16, 16, 64, 1), (64, 32, 256, 1), (256, 64, 512, 2), (512, 128, 1024, 1)),
    'B1': _arch((24, 32), 3,
                (32, 32, 64, 1), (64, 48, 256, 1), (256, 96, 512, 2), (512, 192, 1024, 1)),
    'B2': _arch((24, 32), 4,
                (32, 32, 96, 1), (96, 64, 384, 1), (384, 128, 768, 3), (768, 256, 1536, 1)),
    'B3': _arch((24, 32), 5,
                (32, 32, 128, 1), (128, 64, 512, 1), (512, 128, 1024, 3), (1024, 256, 2048, 1)),
    'B4': _arch((32, 48), 6,
                (48, 48, 128, 1), (128, 96, 512, 1), (512, 192, 1024, 3), (1024, 384, 2048, 1)),
    'B5': _arch((32, 64), 6,
                (64, 64, 128, 1), (128, 128, 512, 2), (512, 256, 1024, 5), (1024, 512, 2048, 2)),
    'B6': _arch((48, 96), 6,
                (96, 96, 192, 2), (192, 192, 512, 3), (512, 384, 1024, 6), (1024, 768, 2048, 3)),
}
# fmt: on


class ConvBNAct(ConvNorm):
    """Convolution, batch norm, ReLU unless ``act`` is False, and a learnable affine map.

    That map follows the ReLU where ``lab`` is True. Other arguments are those of :class:`ConvNorm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        lab: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, groups, 'ReLU' if act else None
        )
        self.lab = LearnableAffine() if act and lab else nn.Identity()

    def forward(self, *features: Tensor) -> Tensor:
        """Features (B, C_i, H, W), concatenated along the channels, to (B, C, H', W')."""
        return self.lab(super().forward(*features))


class LightConvBNAct(nn.Module):
    """1×1 convolution without activation, then a depthwise convolution with one."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, lab: bool) -> None:
        super().__init__()
        self.conv1 = ConvBNAct(in_channels, out_channels, 1, act=False)
        self.conv2 = ConvBNAct(
            out_channels, out_channels, kernel_size, groups=out_channels, lab=lab
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Stem(nn.Module):
    """The first layers: images (B, ``in_channels``, H, W) to (B, ``out_channels``, H/4, W/4)."""

    def __init__(
        self, mid_channels: int, out_channels: int, lab: bool, in_channels: int = RGB
    ) -> None:
        super().__init__()
        self.stem1 = ConvBNAct(in_channels, mid_channels, 3, stride=2, lab=lab)
        adapt_input_channels(self.stem1.conv)
        self.stem2a = ConvBNAct(mid_channels, mid_channels // 2, 2, lab=lab)
        self.stem2b = ConvBNAct(mid_channels // 2, mid_channels, 2, lab=lab)
        self.stem3 = ConvBNAct(mid_channels * 2, mid_channels, 3, stride=2, lab=lab)
        self.stem4 = ConvBNAct(mid_channels, out_channels, 1, lab=lab)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem4(self.stem3(*self.branches(x)))

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled and convolved features of images, (B, ``mid_channels``, H/2, W/2) each."""
        # With one more column at the right and row below, even kernels keep the resolution.
        x = F.pad(self.stem1(x), (0, 1, 0, 1))
        convs = self.stem2b(F.pad(self.stem2a(x), (0, 1, 0, 1)))
        return largest_of_four(x, self.stem1.with_cp), convs


def largest_of_four(x: Tensor, with_cp: bool) -> Tensor:
    """Maximum of each pixel, its neighbours at the right and below, and the one between these two.

    Args:
        x: Features (B, C, H, W).
        with_cp: Whether the backward pass looks for the maxima again. Otherwise their positions are
            kept, in 8 bytes each: as much as four feature maps in half precision.

    Returns:
        Features (B, C, H - 1, W - 1).
    """
    # A compiler and torch.func decide by themselves what they keep.
    plain = not with_cp or address_of(x) is None
    if plain or not (torch.is_grad_enabled() and x.requires_grad):
        return F.max_pool2d(x, kernel_size=2, stride=1)
    # Without the graph of x.
    kept = x.detach()

    def pack(saved: Tensor) -> Tensor | None:
        return saved if saved.is_floating_point() else None

    def unpack(saved: Tensor | None) -> Tensor:
        if saved is not None:
            return saved
        return F.max_pool2d(kept, kernel_size=2, stride=1, return_indices=True)[1]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return F.max_pool2d(x, kernel_size=2, stride=1)


class Block(nn.Module):
    """A chain of layers whose outputs, with the input, are concatenated and aggregated.

    With ``residual`` the input is added to the result. ``spec`` is that of the block's stage.
    """

    def __init__(self, spec: StageSpec, in_channels: int, residual: bool, lab: bool) -> None:
        super().__init__()
        self.residual = residual
        widths = [in_channels] + [spec.mid_channels] * spec.num_layers
        layer = LightConvBNAct if spec.light else ConvBNAct
        self.layers = nn.ModuleList(
            layer(i, spec.mid_channels, spec.kernel_size, lab=lab) for i in widths[:-1]
        )
        squeezed = spec.out_channels // 2
        self.aggregation = nn.Sequential(
            ConvBNAct(sum(widths), squeezed, 1, lab=lab),
            ConvBNAct(squeezed, spec.out_channels, 1, lab=lab),
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        squeeze, expand = self.aggregation
        out = expand(squeeze(*outputs))
        return out + x if self.residual else out


class HGStage(nn.Module):
    """Depthwise 3×3 convolution of stride 2 (optional), then blocks, residual after the first."""

    def __init__(self, spec: StageSpec, lab: bool) -> None:
        super().__init__()
        channels = spec.in_channels
        self.downsample = (
            ConvBNAct(channels, channels, 3, stride=2, groups=channels, act=False)
            if spec.downsample
            else nn.Identity()
        )
        self.blocks = nn.Sequential(
            *(
                Block(spec, spec.out_channels if i else channels, residual=i > 0, lab=lab)
                for i in range(spec.num_blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


@MODELS.register_module()
class HGNetv2(FreezesStages, BaseModule):
    """HGNetv2 backbone.

    Args:
        arch: Size, ``'B0'`` to ``'B6'``, or one of DEIMv2's three small ones, ``'Atto'``,
            ``'Femto'`` and ``'Pico'``, which have three stages.
        out_indices: Stages (0-based) whose feature maps are returned; stage i has stride
            ``4 · 2^i``.
        use_lab: Add a learnable affine after each activation (B0 to B2 of D-FINE, and the small
            ones of DEIMv2).
        in_channels: Channels of the images. Weights for three are adapted, see
            :func:`~deim_mmdet.models.layers.input_channels.adapt_input_channels`.
        frozen_stages: How much doesn't train: -1 nothing, 0 the stem, 1 the stem and the first
            stage, and so on, up to the whole backbone.
        frozen_stem: The same as ``frozen_stages=0``.
        norm_frozen: Keep statistics, scale and shift of all norms as loaded.
        with_cp: Whether the backward pass joins concatenated features again instead of keeping
            them, and looks for the stem's maxima again, which saves memory; see
            :func:`~deim_mmdet.models.layers.conv_norm.set_with_cp`.
        init_cfg: See :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: ``arch``, ``out_indices`` or ``frozen_stages`` is not one of those above.
    """

    def __init__(
        self,
        arch: str,
        out_indices: Sequence[int] = (1, 2, 3),
        use_lab: bool = False,
        in_channels: int = RGB,
        frozen_stages: int = -1,
        frozen_stem: bool = False,
        norm_frozen: bool = False,
        with_cp: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if arch not in ARCHS:
            raise UserError(f'HGNetv2 has no arch {arch!r}: choose one of {sorted(ARCHS)}')
        spec = ARCHS[arch]
        last = len(spec.stages) - 1
        if not out_indices or not set(out_indices) <= set(range(last + 1)):
            raise UserError(
                f'out_indices of HGNetv2-{arch} must be among 0 … {last}, got {out_indices}'
            )
        self.image_channels = in_channels
        self.out_indices = tuple(out_indices)
        self.stem = Stem(*spec.stem, lab=use_lab, in_channels=in_channels)
        self.stages = nn.ModuleList(
            HGStage(stage, use_lab) for stage in spec.stages[: max(out_indices) + 1]
        )
        set_with_cp(self, with_cp)
        if norm_frozen:
            freeze_norms(self)
        parts = [[self.stem], *([stage] for stage in self.stages)]
        self.freeze_stages(parts, max(frozen_stages, 0) if frozen_stem else frozen_stages)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) to maps (B, C_i, H / s_i, W / s_i) of stages i with stride s_i."""
        x = self.stem(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)
