"""DINOv3 within the DEIMv2 models of transformers, by the names of the reference."""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from ..models.layers.vit import RotaryPositions
from ..utils.errors import UserError
from ..utils.name_table import NameTable

#: Begins the names of the backbone's tensors.
BACKBONE = 'model.conv_encoder.'
_LAYER = 'backbone.layer.{i}'
# Channels of an attention head, in both sizes of DINOv3.
_HEAD_DIMS = 64


@cache
def _table(gated: bool) -> NameTable:
    names = dict(gate_proj='w1', up_proj='w2', down_proj='w3') if gated else {}
    ffn = names or dict(up_proj='fc1', down_proj='fc2')
    pairs = [
        ('backbone.embeddings.register_tokens', 'dinov3.storage_tokens'),
        ('backbone.embeddings.patch_embeddings.{leaf}', 'dinov3.patch_embed.proj.{leaf}'),
        ('backbone.embeddings.{leaf}', 'dinov3.{leaf}'),
        ('backbone.norm.{leaf}', 'dinov3.norm.{leaf}'),
        *(
            (f'{_LAYER}.{theirs}.{{leaf}}', f'dinov3.blocks.{{i}}.{ours}.{{leaf}}')
            for theirs, ours in (
                ('norm1', 'norm1'),
                ('norm2', 'norm2'),
                ('attention.o_proj', 'attn.proj'),
                *((f'attention.{part}_proj', f'attn.{part}') for part in 'qkv'),
                *((f'mlp.{layer}', f'mlp.{name}') for layer, name in ffn.items()),
            )
        ),
        *((f'{_LAYER}.layer_scale{k}.lambda1', f'dinov3.blocks.{{i}}.ls{k}.gamma') for k in (1, 2)),
        *(
            (f'{theirs}.{{leaf}}', f'{ours}.{{leaf}}')
            for theirs, ours in (
                ('fusion_proj.{i}.conv', 'convs.{i}'),
                ('fusion_proj.{i}.norm', 'norms.{i}'),
                *(
                    (f'spatial_tuning_adapter.{conv}.{part}', f'sta.{name}.{first + k}')
                    for conv, name, first in (
                        ('stem_conv', 'stem', 0),
                        ('conv2', 'conv2', 0),
                        ('conv3', 'conv3', 1),
                        ('conv4', 'conv4', 1),
                    )
                    for k, part in enumerate(('conv', 'norm'))
                ),
            )
        ),
    ]
    return NameTable((f'{BACKBONE}{theirs}', f'backbone.{ours}') for theirs, ours in pairs)


def convert_vit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone with DINOv3 of a DEIMv2 model of transformers, by the reference's names.

    Args:
        state_dict: All of the model's tensors.

    Returns:
        The backbone's tensors; none where the backbone is another. Queries, keys and values are
        joined. What transformers derives is added: the mask of the bias, and periods of positions.

    Raises:
        ValueError: Tensors of the backbone have names that aren't known. Or the model is S or M,
            whose ViT-T is another network in transformers (5.23).
    """
    registers = state_dict.get(f'{BACKBONE}backbone.embeddings.register_tokens')
    if registers is None:
        return {}
    if not registers.numel():
        raise UserError(
            "it is a DEIMv2 S or M of transformers, not the authors' network: it normalises the "
            "last output of ViT-T and lacks the biases of its keys. Take the authors' file"
        )
    gated = any('.mlp.gate_proj.' in name and '.backbone.' in name for name in state_dict)
    own = {name: value for name, value in state_dict.items() if name.startswith(BACKBONE)}
    converted = _table(gated).renamed(own, 'a DEIMv2 of transformers with DINOv3')
    for name in [name for name in converted if name.endswith('.attn.q.weight')]:
        attention = name.removesuffix('.q.weight')
        zeros = torch.zeros_like(converted[f'{attention}.q.bias'])
        for leaf in ('weight', 'bias'):
            parts = [converted.pop(f'{attention}.{part}.{leaf}', zeros) for part in 'qkv']
            converted[f'{attention}.qkv.{leaf}'] = torch.cat(parts)
        mask = torch.ones_like(zeros)
        converted[f'{attention}.qkv.bias_mask'] = torch.cat([mask, zeros, mask])
    token = converted['backbone.dinov3.mask_token']
    converted['backbone.dinov3.mask_token'] = token.flatten(0, 1)
    periods = RotaryPositions(_HEAD_DIMS).periods
    converted['backbone.dinov3.rope_embed.periods'] = periods.to(token.dtype)
    return converted
