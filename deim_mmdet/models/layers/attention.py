"""Self-attention with the parameters of torch's, by scaled dot-product attention."""

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.MultiheadAttention):
    """Multi-head attention of tokens among themselves, positions added to queries and keys.

    Parameters are those of :class:`torch.nn.MultiheadAttention`.

    Args:
        embed_dims: Width of the tokens.
        num_heads: Attention heads.
    """

    #: What projects; a subclass may take its products from elsewhere.
    linear = staticmethod(F.linear)

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__(embed_dims, num_heads, batch_first=True)

    def forward(
        self, positioned: Tensor, tokens: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Tokens with positions and without, (B, N, D) each, to (B, N, D).

        Args:
            positioned: Of them, queries and keys are made.
            tokens: Of them, values are made.
            attn_mask: (N, N) bool, true where self-attention is forbidden.
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
    """Scaled dot-product attention of several heads, all (B, N, D).

    Args:
        attn_mask: (N, N) bool, true where it is forbidden.
    """
    queries, keys, values = (
        split_last(tokens, num_heads).transpose(1, 2) for tokens in (queries, keys, values)
    )
    attended = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=None if attn_mask is None else ~attn_mask,
        # Given as a number, it is a constant to an exporter that traces.
        scale=int(queries.shape[-1]) ** -0.5,
    )
    return attended.transpose(1, 2).flatten(2)


def split_last(tensor: Tensor, parts: int) -> Tensor:
    """(B, …, n) to (B, …, parts, n / parts).

    As ``unflatten``, but to an exporter that traces, B stays open and the others are constants.
    """
    *inner, last = (int(size) for size in tensor.shape[1:])
    return tensor.reshape(-1, *inner, parts, last // parts)
