"""Deformable attention to several feature maps around reference boxes (arXiv 2010.04159, 2407.17140).

Shape letters: `B` batch, `Q` queries, `N` cells of all maps, `D` hidden dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detronome.ops.deformable import Sampling, deformable_sample

__all__ = ["MultiScaleDeformableAttention"]

_OFFSET_SCALE = 0.5
"""An offset of `num_points` reaches from a box's centre to its edge."""


class MultiScaleDeformableAttention(nn.Module):
    """Each head of each query reads a few learned points of every map and weighs them.

    Args:
        embed_dim: channels of queries and maps.
        num_heads: heads; divides `embed_dim`.
        num_points: points of a head on each map, finest map first.
        sampling: how a map is read between its cells; with `discrete` the offsets keep their initial values.
        has_projections: project the maps before they are read and the result after; D-FINE does without.
    """

    offset_scale: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_points: Sequence[int] = (4, 4, 4),
        sampling: Sampling = "default",
        has_projections: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_points = tuple(num_points)
        self.sampling: Sampling = sampling
        total = num_heads * sum(num_points)
        self.sampling_offsets = nn.Linear(embed_dim, total * 2)
        self.attention_weights = nn.Linear(embed_dim, total)
        self.value_proj: nn.Module = nn.Linear(embed_dim, embed_dim) if has_projections else nn.Identity()
        self.output_proj: nn.Module = nn.Linear(embed_dim, embed_dim) if has_projections else nn.Identity()
        per_point = [1 / count for count in self.num_points for _ in range(count)]
        self.register_buffer("offset_scale", _OFFSET_SCALE * torch.tensor(per_point).unsqueeze(-1), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Start with each head looking in its own direction, each point of a map one step further, all alike heeded."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.cat([torch.arange(1, count + 1) for count in self.num_points])
        for weights in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(weights)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((direction[:, None] * steps[None, :, None]).flatten())
        for projection in (self.value_proj, self.output_proj):
            if isinstance(projection, nn.Linear):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)
        if self.sampling == "discrete":  # the nearest cell has no gradient towards the location
            self.sampling_offsets.requires_grad_(False)

    def forward(
        self,
        query: Float[Tensor, "B Q D"],
        reference_boxes: Float[Tensor, "B Q 4"],
        memory: Float[Tensor, "B N D"],
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "B Q D"]:
        """Attend.

        Args:
            query: content plus position.
            reference_boxes: cxcywh, 0-1 of the padded maps.
            memory: the cells of all maps, finest map first, row by row.
            spatial_shapes: height and width of each map.
        """
        split = (self.num_heads, sum(self.num_points))
        offsets = self.sampling_offsets(query).unflatten(-1, (*split, 2)).transpose(1, 2)
        weights = self.attention_weights(query).unflatten(-1, split).softmax(-1).transpose(1, 2)
        centre, size = reference_boxes[:, None, :, None].split(2, dim=-1)
        locations = centre + offsets * self.offset_scale * size
        value = self.value_proj(memory).transpose(1, 2).unflatten(1, (self.num_heads, -1))
        levels = value.split([height * width for height, width in spatial_shapes], dim=-1)
        maps = [cells.unflatten(-1, shape) for cells, shape in zip(levels, spatial_shapes, strict=True)]
        return self.output_proj(deformable_sample(maps, locations, weights, self.num_points, self.sampling))
