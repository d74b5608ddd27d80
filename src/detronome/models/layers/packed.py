"""Layers for prediction alone, on a CPU: what an optimised copy of a model has in place of those it was trained with.

Their weights are laid out for oneDNN and are no parameters: such a copy is neither trained nor saved.

Shape letters: `B` batch, `C D` channels, `H W` and `h w` height and width before and after, `Q` queries, `K` keys,
`*S` any shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from detronome.models.layers.attention import MultiHeadAttention
from detronome.ops.onednn import Activation, ConvGeometry, convolve, linear, pack_conv, pack_linear

__all__ = ["PackedAttention", "PackedConv2d", "PackedLinear"]


class PackedConv2d(nn.Module):
    """A convolution that takes activation and shortcut along.

    The layout of its kernel follows the size of the last images: another size costs one rearrangement, about a tenth
    of the convolution.

    Args:
        conv: what it does; its weights are shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple) and conv.padding_mode == "zeros"
        self.weight = conv.weight.detach()
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.bias = bias.to(self.weight.dtype)
        self.geometry = ConvGeometry(
            stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups
        )
        self._packed: tuple[torch.Size, Tensor] | None = None

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        *,
        activation: Activation = "none",
        residual: Float[Tensor, "B D h w"] | None = None,
    ) -> Float[Tensor, "B D h w"]:
        """Return a map in the kernel's dtype; see `ops.onednn.convolve`."""
        x = x.to(self.weight.dtype, memory_format=torch.channels_last)
        packed = self._packed  # read once: another thread may replace it
        if packed is None or packed[0] != x.shape:
            packed = self._packed = (x.shape, pack_conv(self.weight, self.geometry, x.shape))
        return convolve(x, packed[1], self.bias, self.geometry, activation=activation, residual=residual)


class PackedLinear(nn.Module):
    """A linear layer.

    Args:
        weight: output channels first.
        bias: of each output channel.
    """

    def __init__(self, weight: Float[Tensor, "D C"], bias: Float[Tensor, " D"] | None) -> None:
        super().__init__()
        self.dtype = weight.dtype
        self._weight = pack_linear(weight.detach())
        self._bias = None if bias is None else bias.detach().to(weight.dtype)

    def forward(self, x: Float[Tensor, "*S C"]) -> Float[Tensor, "*S D"]:
        """Transform the last dimension; the result has the weight's dtype."""
        return linear(x.to(self.dtype), self._weight, self._bias)


class PackedAttention(nn.Module):
    """Multi-head attention, called as `MultiHeadAttention` is.

    Args:
        attention: what it does.
    """

    def __init__(self, attention: MultiHeadAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        weights, biases = attention.in_proj_weight, attention.in_proj_bias
        dim = weights.shape[1]
        self.query = PackedLinear(weights[:dim], biases[:dim])
        self.key = PackedLinear(weights[dim : 2 * dim], biases[dim : 2 * dim])
        self.value = PackedLinear(weights[2 * dim :], biases[2 * dim :])
        self.out = PackedLinear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Float[Tensor, "B Q D"],
        key: Float[Tensor, "B K D"],
        value: Float[Tensor, "B K D"],
        mask: Float[Tensor, "#B 1 #Q K"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Attend from each query to all keys; see `MultiHeadAttention`."""
        # One product for queries and keys was measured to take longer: its halves do not lie in one piece.
        q, k, v = self.query(query), self.key(key), self.value(value)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        mask = None if mask is None else mask.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(out.transpose(1, 2).flatten(-2))
