"""Self-attention by scaled dot-product attention, with the parameters of torch's module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .basic import under_autocast


class SelfAttention(nn.MultiheadAttention):
    """Multi-head attention among tokens; positions are added to queries and keys only.

    Its parameters are those of :class:`torch.nn.MultiheadAttention`.

    Args:
        embed_dims: Width of the tokens.
        num_heads: Attention heads.
    """

    #: The function that projects. A subclass may replace it.
    linear = staticmethod(F.linear)

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__(embed_dims, num_heads, batch_first=True)

    def forward(
        self, positioned: Tensor, tokens: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Attend among N tokens of width D in each of B images.

        Args:
            positioned: (B, N, D) tokens with their positions added; they give queries and keys.
            tokens: (B, N, D) the same tokens without positions; they give the values.
            attn_mask: (N, N) as :func:`additive_mask` makes it; None for no mask.

        Returns:
            (B, N, D).
        """
        dims = self.embed_dim
        weights = self.in_proj_weight.split([2 * dims, dims])
        biases = self.in_proj_bias.split([2 * dims, dims])
        queries, keys = self.linear(positioned, weights[0], biases[0]).chunk(2, dim=-1)
        values = self.linear(tokens, weights[1], biases[1])
        attended = attend(queries, keys, values, self.num_heads, attn_mask)
        return self.linear(attended, self.out_proj.weight, self.out_proj.bias)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    num_heads: int,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention of several heads.

    Args:
        queries: (B, N, D) of N tokens of width D in each of B images.
        keys: (B, N, D).
        values: (B, N, D).
        num_heads: Number of attention heads, which divides D.
        attn_mask: (N, N) as :func:`additive_mask` makes it; None for no mask.

    Returns:
        (B, N, D).
    """
    queries, keys, values = (
        split_last(tokens, num_heads).transpose(1, 2) for tokens in (queries, keys, values)
    )
    attended = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=attn_mask,
        # An exporter that traces takes a plain number as a constant.
        scale=int(queries.shape[-1]) ** -0.5,
    )
    return attended.transpose(1, 2).flatten(2)


def additive_mask(forbidden: Tensor, like: Tensor) -> Tensor:
    """Mask that attention adds to its logits, made once for all layers.

    From a mask of bools, each layer would make such a mask again.

    Args:
        forbidden: (N, N) bool, true where attention is forbidden.
        like: Tokens whose device and type the mask gets; under autocast it gets autocast's type.

    Returns:
        (N, N), 0 or -∞.
    """
    device, width = like.device.type, len(forbidden)
    dtype = torch.get_autocast_dtype(device) if under_autocast(device) else like.dtype
    # Kernels of a GPU copy a mask whose rows don't begin at multiples of 16 numbers.
    rows = torch.zeros(width, -(-width // 16) * 16, dtype=dtype, device=like.device)
    return rows[:, :width].masked_fill_(forbidden, -torch.inf)


def split_last(tensor: Tensor, parts: int) -> Tensor:
    """Split the last axis: (B, ..., n) to (B, ..., parts, n / parts).

    Unlike with ``unflatten``, an exporter that traces leaves B open; other sizes are constants.
    """
    *inner, last = (int(size) for size in tensor.shape[1:])
    return tensor.reshape(-1, *inner, parts, last // parts)
