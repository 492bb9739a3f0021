"""DEIMv2's backbone: a vision transformer, and a small convolutional net for fine details.

Written from the paper (arXiv 2509.20787).
"""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...utils.errors import UserError
from ..layers.basic import resized
from ..layers.conv_norm import ConvNorm
from ..layers.freezing import FreezesStages
from ..layers.input_channels import RGB, adapt_input_channels
from .vision_transformer import VisionTransformer

#: Strides of the levels, and factors to their sides from those of a map of stride 16.
STRIDES = (8, 16, 32)
FACTORS = (2, 1, 0.5)


class SpatialTuningAdapter(nn.Module):
    """Convolutions that see what patches of 16×16 pixels blur.

    Args:
        channels: Channels c of the first convolution.
        in_channels: Channels C of the images.
    """

    def __init__(self, channels: int, in_channels: int = RGB) -> None:
        super().__init__()
        self.stem = ConvNorm(in_channels, channels, 3, stride=2, act='GELU')
        adapt_input_channels(self.stem.conv)
        widths = [channels, 2 * channels, 4 * channels, 4 * channels]
        self.levels = nn.ModuleList(ConvNorm(*widths[i : i + 2], 3, stride=2) for i in range(3))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to maps of 2c, 4c and 4c channels with strides 8, 16 and 32."""
        x = F.max_pool2d(self.stem(images), 3, stride=2, padding=1)
        outputs = []
        for level in self.levels:
            x = level(F.gelu(x) if outputs else x)
            outputs.append(x)
        return outputs


@MODELS.register_module()
class ViTAdapter(FreezesStages, BaseModule):
    """A vision transformer's features at strides 8, 16 and 32, tuned by a convolutional net.

    Args:
        vit: Arguments of :class:`VisionTransformer`, with three ``out_indices``. The first of its
            outputs becomes the finest level, the last the coarsest.
        adapter_channels: ``channels`` of the :class:`SpatialTuningAdapter`.
        out_channels: Channels of all outputs.
        in_channels: Channels C of the images; weights for three are adapted when they are loaded.
        frozen_stages: How much doesn't train: as of :class:`VisionTransformer` up to its
            ``depth``; ``depth + 1`` freezes the convolutional net and the fusions too.
        with_cp: Whether the backward pass computes each block of the vision transformer again
            instead of keeping what is within it.
        init_cfg: See :class:`mmengine.model.BaseModule`. A checkpoint of a vision transformer alone
            is loaded into that part.

    Raises:
        ValueError: ``vit`` doesn't have three ``out_indices``, or see :class:`VisionTransformer`.
    """

    def __init__(
        self,
        vit: dict,
        adapter_channels: int,
        out_channels: int,
        in_channels: int = RGB,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.image_channels = in_channels
        self.vit = VisionTransformer(**vit, in_channels=in_channels, with_cp=with_cp)
        if len(self.vit.out_indices) != 3:
            raise UserError(
                f'ViTAdapter needs three out_indices in vit, got {self.vit.out_indices}'
            )
        self.sta = SpatialTuningAdapter(adapter_channels, in_channels)
        self.fusions = nn.ModuleList(
            ConvNorm(self.vit.embed_dims + factor * adapter_channels, out_channels, 1)
            for factor in (2, 4, 4)
        )
        load_alone(self, 'vit')
        self.freeze_stages([*self.vit.stages(), [self.sta, self.fusions]], frozen_stages)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) to (B, ``out_channels``, H / s, W / s), rounded up, s = 8, 16, 32."""
        levels = zip(self.fusions, self.vit(images), FACTORS, self.sta(images), strict=True)
        return tuple(
            fusion(resize(feature, factor, detail.shape[-2:]), detail)
            for fusion, feature, factor, detail in levels
        )


def resize(feature: Tensor, factor: float, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation of a feature map (B, D, H, W) to (B, D, *size).

    The map is first continued or then cut at the right and below where ``factor`` leads to another
    size. So a place of the image stays at the same place in all levels, whatever its size.

    Args:
        feature: The map.
        factor: Factor of both sides, one of ``FACTORS``.
        size: Height and width of the result: H and W times the factor, rounded up, or less.
    """
    size, sides = tuple(map(int, size)), [int(side) for side in feature.shape[-2:]]
    if factor < 1 and any(side % 2 for side in sides):
        feature = F.pad(feature, (0, sides[1] % 2, 0, sides[0] % 2), mode='replicate')
        sides = [side + side % 2 for side in sides]
    scaled = tuple(int(factor * side) for side in sides)
    if factor != 1:
        feature = resized(feature, size=scaled, mode='bilinear', align_corners=False)
    return feature if scaled == size else feature[..., : size[0], : size[1]]


def load_alone(backbone: nn.Module, part: str) -> None:
    """Let ``backbone`` load checkpoints of its vision transformer alone, into the child ``part``.

    Args:
        backbone: The module that checkpoints are loaded into.
        part: Name of its :class:`VisionTransformer`.
    """
    # A partial of a named function, so that models can be pickled.
    backbone.register_load_state_dict_pre_hook(partial(_add_prefix, part))


def _add_prefix(part: str, module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    if not any(name.startswith((f'{prefix}blocks.', f'{prefix}_model.')) for name in state_dict):
        return
    for name in [name for name in state_dict if name.startswith(prefix)]:
        # The name that ViT-T's wrapper has in DEIMv2's own files.
        bare = name.removeprefix(prefix).removeprefix('_model.')
        state_dict[f'{prefix}{part}.{bare}'] = state_dict.pop(name)
