"""DEIMv2's backbone: a vision transformer, and a small convolutional net for fine details.

Written from the paper (arXiv 2509.20787).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..layers.basic import ConvNorm
from .vision_transformer import VisionTransformer


class SpatialTuningAdapter(nn.Module):
    """Convolutions that see what patches of 16×16 pixels blur.

    Args:
        channels: Channels c of the first convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, channels, 3, stride=2, act='GELU')
        widths = [channels, 2 * channels, 4 * channels, 4 * channels]
        self.levels = nn.ModuleList(ConvNorm(*widths[i : i + 2], 3, stride=2) for i in range(3))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to 2c, 4c and 4c channels with strides 8, 16 and 32."""
        x = F.max_pool2d(self.stem(images), 3, stride=2, padding=1)
        outputs = []
        for level in self.levels:
            x = level(F.gelu(x) if outputs else x)
            outputs.append(x)
        return outputs


@MODELS.register_module()
class ViTAdapter(BaseModule):
    """A vision transformer's features at strides 8, 16 and 32, tuned by a convolutional net.

    Args:
        vit: Arguments of :class:`VisionTransformer`, with three ``out_indices``. The first of its
            outputs becomes the finest level, the last the coarsest.
        adapter_channels: See :class:`SpatialTuningAdapter`.
        out_channels: Channels of all outputs.
        init_cfg: See :class:`mmengine.model.BaseModule`. A checkpoint of a vision transformer alone
            is loaded into that part.

    Raises:
        ValueError: The vision transformer has not three outputs.
    """

    def __init__(
        self,
        vit: dict,
        adapter_channels: int,
        out_channels: int,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.vit = VisionTransformer(**vit)
        if len(self.vit.out_indices) != 3:
            raise ValueError(f'ViTAdapter needs three out_indices, got {self.vit.out_indices}')
        self.sta = SpatialTuningAdapter(adapter_channels)
        self.fusions = nn.ModuleList(
            ConvNorm(self.vit.embed_dims + factor * adapter_channels, out_channels, 1)
            for factor in (2, 4, 4)
        )
        load_alone(self, 'vit')

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) to (B, ``out_channels``, H / s, W / s) for s = 8, 16, 32."""
        levels = zip(self.fusions, self.vit(images), self.sta(images), strict=True)
        return tuple(
            fusion(resize(feature, detail.shape[-2:]), detail) for fusion, feature, detail in levels
        )


def resize(feature: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation of a feature map (B, D, H, W) to (B, D, *size)."""
    size = tuple(int(side) for side in size)
    if tuple(feature.shape[-2:]) == size:
        return feature
    return F.interpolate(feature, size=size, mode='bilinear', align_corners=False)


def load_alone(backbone: nn.Module, part: str) -> None:
    """Let ``backbone`` load checkpoints of its vision transformer alone, into the child ``part``.

    Args:
        backbone: The module that checkpoints are loaded into.
        part: Name of its :class:`VisionTransformer`.
    """

    def add_prefix(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
        alone = [n for n in state_dict if n.startswith((f'{prefix}blocks.', f'{prefix}_model.'))]
        if not alone:
            return
        for name in [name for name in state_dict if name.startswith(prefix)]:
            # The name that ViT-T's wrapper has in DEIMv2's own files.
            bare = name.removeprefix(prefix).removeprefix('_model.')
            state_dict[f'{prefix}{part}.{bare}'] = state_dict.pop(name)

    backbone.register_load_state_dict_pre_hook(add_prefix)
