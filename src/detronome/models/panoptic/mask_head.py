"""The mask head: where each query looks, refined to a mask by the backbone's finer maps (arXiv 2005.12872, figure 8).

Shape letters: `B` batch, `Q` queries, `D` hidden dimension, `N` heads, `M` chosen queries of the whole batch, `h w` a
feature map's height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

__all__ = ["BoxAttention", "MaskHead"]

_NUM_GROUPS = 8


class BoxAttention(nn.Module):
    """Attention of each query over the memory, as maps: there are no values to sum up.

    Args:
        hidden_dim: width of queries and memory.
        num_heads: maps of each query.
    """

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(hidden_dim, hidden_dim)
        self.k_linear = nn.Linear(hidden_dim, hidden_dim)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, queries: Float[Tensor, "B Q D"], memory: Float[Tensor, "B D h w"], padding_mask: Bool[Tensor, "B h w"]
    ) -> Float[Tensor, "B Q N h w"]:
        """Return maps that sum to 1 over all heads and cells of a query together; padding gets 0."""
        height, width = memory.shape[-2:]
        query = self.q_linear(queries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key = self.k_linear(memory.flatten(2).transpose(1, 2)).unflatten(-1, (self.num_heads, -1)).permute(0, 2, 3, 1)
        scores = torch.matmul(query * query.shape[-1] ** -0.5, key).transpose(1, 2).float()
        scores = scores.masked_fill(padding_mask.flatten(1)[:, None, None], -torch.inf)
        return scores.flatten(2).softmax(-1).unflatten(-1, (self.num_heads, height, width))


class MaskHead(nn.Module):
    """Convolutions from a query's attention maps to its mask, on the way up through the backbone's maps.

    Every query is computed apart from the others, so masks may be made for any choice of them.

    Args:
        hidden_dim: channels of the projected features, a multiple of 128.
        num_heads: attention maps of each query, a multiple of 8.
        map_channels: channels of the backbone's maps of strides 4, 8 and 16.
    """

    def __init__(self, hidden_dim: int, num_heads: int, map_channels: Sequence[int]) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        channels = (hidden_dim + num_heads, *(hidden_dim // divisor for divisor in (2, 4, 8, 16)))
        self.lay1 = nn.Conv2d(channels[0], channels[0], 3, padding=1)
        self.gn1 = nn.GroupNorm(_NUM_GROUPS, channels[0])
        self.lay2 = nn.Conv2d(channels[0], channels[1], 3, padding=1)
        self.gn2 = nn.GroupNorm(_NUM_GROUPS, channels[1])
        self.lay3 = nn.Conv2d(channels[1], channels[2], 3, padding=1)
        self.gn3 = nn.GroupNorm(_NUM_GROUPS, channels[2])
        self.lay4 = nn.Conv2d(channels[2], channels[3], 3, padding=1)
        self.gn4 = nn.GroupNorm(_NUM_GROUPS, channels[3])
        self.lay5 = nn.Conv2d(channels[3], channels[4], 3, padding=1)
        self.gn5 = nn.GroupNorm(_NUM_GROUPS, channels[4])
        self.out_lay = nn.Conv2d(channels[4], 1, 3, padding=1)
        stride_4, stride_8, stride_16 = map_channels
        self.adapter1 = nn.Conv2d(stride_16, channels[1], 1)
        self.adapter2 = nn.Conv2d(stride_8, channels[2], 1)
        self.adapter3 = nn.Conv2d(stride_4, channels[3], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        projected: Float[Tensor, "B D _ _"],
        attention: Float[Tensor, "M N _ _"],
        maps: Sequence[Float[Tensor, "B _ _ _"]],
        image_index: Int64[Tensor, " M"],
    ) -> Float[Tensor, "M h w"]:
        """Return the mask logits of the chosen queries, of the size of the first map.

        Args:
            projected: what the transformer was given: the backbone's last map in the hidden dimension.
            attention: the chosen queries' attention maps, of the same size.
            maps: the backbone's maps of strides 4, 8 and 16.
            image_index: the image of each chosen query.
        """
        x = F.relu(self.gn1(self._first(projected, attention, image_index)), inplace=True)
        x = F.relu(self.gn2(self.lay2(x)), inplace=True)
        stride_4, stride_8, stride_16 = maps
        x = _added(x, self.adapter1(stride_16), image_index)
        x = F.relu(self.gn3(self.lay3(x)), inplace=True)
        x = _added(x, self.adapter2(stride_8), image_index)
        x = F.relu(self.gn4(self.lay4(x)), inplace=True)
        x = _added(x, self.adapter3(stride_4), image_index)
        x = F.relu(self.gn5(self.lay5(x)), inplace=True)
        return self.out_lay(x).squeeze(1).float()

    def _first(self, projected: Tensor, attention: Tensor, image_index: Tensor) -> Tensor:
        """Apply `lay1` to features and attention side by side. The features are those of the image, whatever the query,
        and nearly all channels: their part is computed once an image."""
        weight = self.lay1.weight
        of_image = F.conv2d(projected, weight[:, : self.hidden_dim], self.lay1.bias, padding=1)
        of_query = F.conv2d(attention, weight[:, self.hidden_dim :], padding=1)
        return of_query + of_image.index_select(0, image_index)


def _added(x: Tensor, adapted: Tensor, image_index: Tensor) -> Tensor:
    """Bring the queries' maps to the size of the images' next finer map, and add it."""
    return F.interpolate(x, size=adapted.shape[-2:], mode="nearest") + adapted.index_select(0, image_index)
