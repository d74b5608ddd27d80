"""Multi-head attention.

Shape letters: `B` batch, `Q` queries, `K` keys, `D` embedding dimension, `*S` any shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detronome.models.layers.dropout import dropout

__all__ = ["MultiHeadAttention", "additive_mask", "forbidden_scores"]


_MASKED_SCORE = -3e4


def additive_mask(padding_mask: Bool[Tensor, "B K"]) -> Float[Tensor, "B 1 1 K"] | None:
    """Return what to add to attention scores so that padded keys get no weight.

    The value leaves a weight of exactly 0 and is finite in float16 too: with nothing but padding, attention is uniform
    instead of NaN.
    On a CPU, where looking at the values costs no synchronisation, a batch without padding gives None.
    """
    if padding_mask.device.type == "cpu" and not torch.compiler.is_compiling() and not padding_mask.any():
        return None
    return forbidden_scores(padding_mask)[:, None, None, :]


def forbidden_scores(forbidden: Bool[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Return what to add to attention scores so that forbidden pairs get no weight; see `additive_mask`."""
    return torch.zeros(forbidden.shape, device=forbidden.device).masked_fill_(forbidden, _MASKED_SCORE)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention over several heads, with the parameter names of `torch.nn.MultiheadAttention`.

    Never forms the attention weights where torch has a fused kernel, and cannot return them.

    Args:
        embed_dim: channels of queries, keys and values.
        num_heads: heads; divides `embed_dim`.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, "B Q D"],
        key: Float[Tensor, "B K D"],
        value: Float[Tensor, "B K D"],
        mask: Float[Tensor, "#B 1 #Q K"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Attend from each query to all keys.

        Passing the same tensor as query and key saves a matrix product's launch. `mask` is added to the scores; see
        `additive_mask`. It may differ by query, and be the same for all images.
        """
        dim = query.shape[-1]
        if query is key:
            q, k = F.linear(query, self.in_proj_weight[: 2 * dim], self.in_proj_bias[: 2 * dim]).chunk(2, dim=-1)
        else:
            q = F.linear(query, self.in_proj_weight[:dim], self.in_proj_bias[:dim])
            k = F.linear(key, self.in_proj_weight[dim : 2 * dim], self.in_proj_bias[dim : 2 * dim])
        v = F.linear(value, self.in_proj_weight[2 * dim :], self.in_proj_bias[2 * dim :])

        q, k, v = (x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        if self.training and self.dropout > 0.0 and q.device.type == "cpu":
            # torch has no fused kernel for this on a CPU: it would draw a slow mask.
            out = _attention_with_dropout(q, k, v, mask, self.dropout)
        else:
            mask = None if mask is None else mask.to(q.dtype)
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
            )
        return self.out_proj(out.transpose(1, 2).flatten(-2))


def _attention_with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    return dropout(scores.softmax(-1).to(v.dtype), p) @ v
