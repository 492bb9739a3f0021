"""The neck of DEIMv2's smallest sizes (arXiv 2509.20787): convolutions alone."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...utils.errors import UserError
from ..layers.basic import resized
from ..layers.conv_norm import ConvNorm, set_with_cp
from .fusion import RepCSPELANBlock, SplitCSPLayer, check_sizes


@MODELS.register_module()
class LiteEncoder(BaseModule):
    """Makes two levels of one: a coarser one with the global average, and both fused (DEIMv2).

    Args:
        in_channels: Channels of the backbone's level, as a list of one.
        feat_strides: Strides of the two outputs in pixels.
        out_channels: Channels of both outputs.
        expansion: Width of the fusion blocks' branches relative to half of ``out_channels``.
        depth: Factor of the 3 RepVGG blocks of each branch.
        with_cp: Whether the backward pass joins concatenated features again instead of keeping
            them, which saves memory; see :func:`~deim_mmdet.models.layers.conv_norm.set_with_cp`.
        init_cfg: See :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: There is more than one level, or the strides aren't one and its double.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        feat_strides: Sequence[int] = (16, 32),
        out_channels: int = 112,
        expansion: float = 0.34,
        depth: float = 0.5,
        with_cp: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if len(in_channels) != 1 or tuple(feat_strides) != (feat_strides[0], 2 * feat_strides[0]):
            raise UserError(
                'LiteEncoder takes one level, so in_channels has one number, and feat_strides are '
                f"the level's stride and its double: got in_channels={in_channels} and "
                f'feat_strides={feat_strides}'
            )
        dims = self.out_channels = out_channels
        self.feat_strides = tuple(feat_strides)
        self.input_proj = nn.ModuleList([ConvNorm(in_channels[0], dims, 1)])
        self.pool_convs = nn.ModuleList(ConvNorm(dims, dims, 1, act='SiLU') for _ in range(2))
        self.global_conv = ConvNorm(dims, dims, 1, act='SiLU')
        branch_channels = round(expansion * dims // 2)
        self.fpn_block, self.pan_block = (
            RepCSPELANBlock(dims, dims, branch_channels, round(3 * depth), csp=SplitCSPLayer)
            for _ in range(2)
        )
        set_with_cp(self, with_cp)

    def _downsampled(self, x: Tensor, index: int) -> Tensor:
        """Features (B, C, H, W) to half the resolution."""
        pooled = F.avg_pool2d(x, kernel_size=3, stride=2, padding=1)
        return self.pool_convs[index](pooled)

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """One level (B, C', H, W) to (B, ``out_channels``, H, W) and a map of half the sides.

        Raises:
            ValueError: The image size is not divisible by the coarser stride.
        """
        (fine,) = feats
        fine = self.input_proj[0](fine)
        coarse = self._downsampled(fine, 0)
        check_sizes((fine, coarse), self.feat_strides)
        coarse = self.global_conv(coarse + coarse.mean((2, 3), keepdim=True))
        upsampled = resized(coarse, scale_factor=2.0, mode='nearest')
        fine = self.fpn_block(fine + upsampled)
        return fine, self.pan_block(coarse + self._downsampled(fine, 1))
