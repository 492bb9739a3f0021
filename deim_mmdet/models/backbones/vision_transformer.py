"""The vision transformer of DEIMv2 (ViT-T, ViT-T+, DINOv3 S and S+) and of ECViT."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...utils.errors import UserError
from ...utils.name_table import NameTable
from ..layers.basic import to_tokens
from ..layers.freezing import FreezesStages
from ..layers.input_channels import RGB
from ..layers.vit import (
    NORM_EPS,
    ConvStem,
    FeedForward,
    GatedFeedForward,
    PatchEmbed,
    RotaryPositions,
    ViTBlock,
)

#: The learned tokens in front of the patches: how many there are, by form and by parameter's name.
OTHER_TOKENS = dict(
    plain=dict(cls_token=1),
    dinov3=dict(cls_token=1, storage_tokens=4),
    ecvit=dict(register_token=1),
)


@MODELS.register_module()
class VisionTransformer(FreezesStages, BaseModule):
    """Vision transformer (arXiv 2010.11929) of patches of 16×16 pixels, with rotary positions.

    Positions follow from the numbers of rows and columns of patches, so any image size will do.

    Args:
        embed_dims: Width D of the tokens.
        num_heads: Attention heads.
        depth: Number of blocks.
        ffn_channels: Width of the feed-forward layers; default: 4 · D.
        out_indices: Blocks, from 0, whose outputs are returned.
        form: ``'plain'`` has one learned token beside the patches. ``'ecvit'`` has one, too, and
            makes patches by four convolutions (:class:`ConvStem`) instead of one. ``'dinov3'``
            (arXiv 2508.10104) has five learned tokens, scaled branches, keys without bias, and its
            outputs are normalised; in training each block measures positions in another unit,
            drawn from ½ to 2. Loading takes the published weights of each form by their own names,
            and ``timm``'s weights of DINOv3.
        gated_ffn: Whether the feed-forward layers are SwiGLU (DINOv3 S+) instead of GELU's.
        in_channels: Channels C of the images; weights for three are adapted when they are loaded.
        frozen_stages: How much doesn't train: -1 nothing, 0 what makes the tokens, 1 that and the
            first block, and so on.
        with_cp: Whether the backward pass computes each block again instead of keeping what is
            within it. This takes less memory and more time.
        init_cfg: See :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: ``form`` is unknown, ``out_indices`` or ``frozen_stages`` names a block that
            there isn't, or the channels of a head, ``embed_dims / num_heads``, are not a multiple
            of 4.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        depth: int = 12,
        ffn_channels: int | None = None,
        out_indices: Sequence[int] = (5, 8, 11),
        form: str = 'plain',
        gated_ffn: bool = False,
        in_channels: int = RGB,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if form not in OTHER_TOKENS:
            raise UserError(
                f'VisionTransformer has no form {form!r}: choose one of {sorted(OTHER_TOKENS)}'
            )
        if not out_indices or not set(out_indices) <= set(range(depth)):
            raise UserError(
                f'out_indices of VisionTransformer must be among 0 … {depth - 1}, got {out_indices}'
            )
        if embed_dims % (4 * num_heads):
            raise UserError(
                'VisionTransformer needs an embed_dims divisible by 4 times num_heads, for its '
                f'rotary positions: got embed_dims={embed_dims}, num_heads={num_heads}'
            )
        dinov3 = form == 'dinov3'
        self.embed_dims = embed_dims
        self.image_channels = in_channels
        self.with_cp = with_cp
        self.out_indices = tuple(out_indices)
        self.other_tokens = tuple(OTHER_TOKENS[form])
        for name, number in OTHER_TOKENS[form].items():
            setattr(self, name, nn.Parameter(0.02 * torch.randn(1, number, embed_dims)))
        # Pre-training puts it in the place of patches. Checkpoints hold it.
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dims)) if dinov3 else None
        make_patches = ConvStem if form == 'ecvit' else PatchEmbed
        self.patch_embed = make_patches(embed_dims, in_channels)
        self.rope_embed = RotaryPositions(embed_dims // num_heads, rescale=2.0 if dinov3 else 1.0)
        make_ffn = partial(
            GatedFeedForward if gated_ffn else FeedForward,
            embed_dims,
            ffn_channels or 4 * embed_dims,
        )
        self.blocks = nn.ModuleList(
            ViTBlock(embed_dims, num_heads, make_ffn, dinov3) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dims, eps=NORM_EPS[dinov3]) if dinov3 else nn.Identity()
        for linear in (m for m in self.blocks.modules() if isinstance(m, nn.Linear)):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.register_load_state_dict_pre_hook(_rename_published_weights)
        self.freeze_stages(self.stages(), frozen_stages)

    def stages(self) -> list[list[nn.Module | nn.Parameter]]:
        """Parts for :meth:`freeze_stages`: what makes the tokens, then each block.

        The norm of the outputs belongs to the last block.
        """
        tokens = [getattr(self, name) for name in self.other_tokens]
        if self.mask_token is not None:
            tokens.append(self.mask_token)
        *blocks, last = self.blocks
        return [[self.patch_embed, *tokens], *([block] for block in blocks), [last, self.norm]]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) to a map (B, D, H / 16, W / 16) of each of ``out_indices``.

        Sides are rounded up.
        """
        patches = self.patch_embed(images)
        height, width = int(patches.shape[-2]), int(patches.shape[-1])
        others = torch.cat([getattr(self, name) for name in self.other_tokens], dim=1)
        if self.training and self.mask_token is not None:
            # With a gradient of 0, distributed training finds no parameter unused.
            others = others + 0 * self.mask_token
        number, tables = others.shape[1], None
        # Not len(), which exporters that trace take for a constant.
        others = others.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([others, to_tokens(patches)], dim=1)
        outputs = []
        for i, block in enumerate(self.blocks[: max(self.out_indices) + 1]):
            if tables is None or self.rope_embed.varies:
                tables = self.rope_embed(height, width, number)
            if self.with_cp and torch.is_grad_enabled():
                # Nothing in a block is random.
                tokens = checkpoint(
                    block, tokens, tables, use_reentrant=False, preserve_rng_state=False
                )
            else:
                tokens = block(tokens, tables)
            if i in self.out_indices:
                # Sums of tokens and what a norm returns can be in float32, under autocast.
                places = self.norm(tokens)[:, number:].to(patches.dtype)
                outputs.append(places.transpose(1, 2).reshape(patches.shape))
        return tuple(outputs)


#: Pairs of a parameter's name in published files and in :class:`VisionTransformer`.
PUBLISHED_NAMES = [
    ('patch_embed.convs.{i}.norm.{leaf}', 'patch_embed.convs.{i}.bn.{leaf}'),
    ('{path}', '{path}'),
]
_TIMM_NAMES = [
    ('reg_token', 'storage_tokens'),
    *((f'blocks.{{i}}.gamma_{k}', f'blocks.{{i}}.ls{k}.gamma') for k in (1, 2)),
    *(
        (f'blocks.{{i}}.mlp.{theirs}.{{leaf}}', f'blocks.{{i}}.mlp.{ours}.{{leaf}}')
        for theirs, ours in (('fc1_g', 'w1'), ('fc1_x', 'w2'))
    ),
]
_rename = NameTable([*_TIMM_NAMES, *PUBLISHED_NAMES])


def rename_vit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a published vision transformer by the names of :class:`VisionTransformer`.

    Args:
        state_dict: By the names of ``timm``'s DINOv3 (``vit_small_patch16_dinov3`` and others), of
            Meta's, of ViT-T or of ECViT, without a prefix.

    Returns:
        The same tensors. timm has the biases of queries and values apart, or none, as DINOv3's are
        zero; here they are one tensor, zero for the keys.
    """
    renamed = {_rename(name): value for name, value in state_dict.items()}
    if 'reg_token' not in state_dict:
        return renamed
    gated = any('.mlp.w1.' in name for name in renamed)
    for name in list(renamed):
        if gated and '.mlp.fc2.' in name:
            renamed[name.replace('.fc2.', '.w3.')] = renamed.pop(name)
        elif name.endswith('.attn.qkv.weight'):
            attention = name.removesuffix('qkv.weight')
            zeros = torch.zeros(len(renamed[name]) // 3, dtype=renamed[name].dtype)
            biases = [renamed.pop(f'{attention}{part}_bias', zeros) for part in 'qkv']
            renamed[f'{attention}qkv.bias'] = torch.cat(biases)
    return renamed


def _rename_published_weights(module: VisionTransformer, state_dict: dict, prefix: str, *_) -> None:
    """Before loading, rename published weights; what timm's files leave out stays as built."""
    given = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
    renamed = rename_vit({name.removeprefix(prefix): value for name, value in given.items()})
    if f'{prefix}reg_token' in given:
        for name, value in module.state_dict().items():
            if name.rpartition('.')[-1] in ('mask_token', 'bias_mask', 'periods'):
                renamed.setdefault(name, value)
    state_dict.update({prefix + name: value for name, value in renamed.items()})
