"""ECViT, the backbone of EdgeCrafter's ECDet (arXiv 2603.18739)."""

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..layers.conv_norm import ConvNorm
from ..layers.freezing import FreezesStages
from ..layers.input_channels import RGB
from .vision_transformer import VisionTransformer
from .vit_adapter import FACTORS, STRIDES, load_alone, resize


@MODELS.register_module()
class ECViT(FreezesStages, BaseModule):
    """A vision transformer with a convolutional stem; one map, resized, gives all levels.

    Args:
        embed_dims: Width D of the tokens.
        num_heads: Attention heads.
        out_channels: Channels of all outputs. Where they equal D only the coarsest level is
            projected, else all are.
        depth: Number of blocks, at least 2; the map is the mean of the last two blocks' outputs.
        ffn_channels: Width of the feed-forward layers; default: 4 · D.
        in_channels: Channels C of the images; weights for three are adapted when they are loaded.
        frozen_stages: How much doesn't train: as of :class:`VisionTransformer` up to its
            ``depth``; ``depth + 1`` freezes the projections too.
        with_cp: Whether the backward pass computes each block of the vision transformer again
            instead of keeping what is within it.
        init_cfg: See :class:`mmengine.model.BaseModule`. A checkpoint of a vision transformer alone
            is loaded into that part.

    Raises:
        ValueError: See :class:`VisionTransformer`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        out_channels: int,
        depth: int = 12,
        ffn_channels: int | None = None,
        in_channels: int = RGB,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.image_channels = in_channels
        self.transformer = VisionTransformer(
            *(embed_dims, num_heads, depth, ffn_channels, (depth - 2, depth - 1)),
            form='ecvit',
            in_channels=in_channels,
            with_cp=with_cp,
        )
        self.projections = nn.ModuleList(
            ConvNorm(embed_dims, out_channels, 1)
            for _ in range(1 if out_channels == embed_dims else 3)
        )
        load_alone(self, 'transformer')
        self.freeze_stages([*self.transformer.stages(), [self.projections]], frozen_stages)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) to (B, ``out_channels``, H / s, W / s), rounded up, s = 8, 16, 32."""
        first, second = self.transformer(images)
        # Unlike the mean of a stack, this keeps the layout in memory.
        feature = (first + second) / 2
        height, width = (int(side) for side in images.shape[-2:])
        unprojected = [nn.Identity()] * (3 - len(self.projections))
        levels = zip([*unprojected, *self.projections], FACTORS, STRIDES, strict=True)
        return tuple(
            project(resize(feature, factor, (-(-height // stride), -(-width // stride))))
            for project, factor, stride in levels
        )
