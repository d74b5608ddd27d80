"""Multi-scale deformable attention's sampling step (arXiv 2010.04159, equation 3) in plain PyTorch.

Shape letters: `B` batch, `H` heads, `Q` queries, `S` points of all levels, `D` channels of one head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["Sampling", "deformable_sample"]

Sampling = Literal["default", "discrete"]
"""`default`: bilinear between cells. `discrete`: the nearest cell, which runtimes without grid sampling can do too."""


def deformable_sample(
    values: Sequence[Float[Tensor, "B H D _height _width"]],
    locations: Float[Tensor, "B H Q S 2"],
    weights: Float[Tensor, "B H Q S"],
    num_points: Sequence[int],
    sampling: Sampling = "default",
) -> Float[Tensor, "B Q H*D"]:
    """Read each level's map at its locations and return the weighted sum over all points.

    Args:
        values: one map per level.
        locations: (x, y), 0-1 of the padded map, the first level's points first. Outside the map `default` reads zeros
            and `discrete` the border.
        weights: attention weights, which sum to 1 over `S`.
        num_points: points of each level.
        sampling: how a map is read between its cells.
    """
    batch, heads, queries = locations.shape[:3]
    levels = zip(
        values,
        locations.flatten(0, 1).split(list(num_points), dim=2),
        weights.flatten(0, 1).unsqueeze(1).split(list(num_points), dim=3),
        strict=True,
    )
    summed: Tensor | None = None
    for value, points, weight in levels:
        read = (
            _bilinear(value.flatten(0, 1), points) if sampling == "default" else _nearest(value.flatten(0, 1), points)
        )
        # Level by level, so that what is read is never copied into one piece.
        level_sum = (read * weight).sum(-1)
        summed = level_sum if summed is None else summed + level_sum
    assert summed is not None
    return summed.view(batch, heads * summed.shape[1], queries).transpose(1, 2)


def _bilinear(value: Float[Tensor, "N D h w"], points: Float[Tensor, "N Q P 2"]) -> Float[Tensor, "N D Q P"]:
    return F.grid_sample(value, 2 * points - 1, align_corners=False)


def _nearest(value: Float[Tensor, "N D h w"], points: Float[Tensor, "N Q P 2"]) -> Float[Tensor, "N D Q P"]:
    """Read one cell. It is the one whose index is nearest to the location times the side, as in RT-DETRv2: half a cell
    further than the cell that holds the location."""
    height, width = value.shape[-2:]
    x = (points[..., 0] * width + 0.5).long().clamp(0, width - 1)
    y = (points[..., 1] * height + 0.5).long().clamp(0, height - 1)
    index = (y * width + x).flatten(1).unsqueeze(1).expand(-1, value.shape[1], -1)
    return value.flatten(2).gather(2, index).unflatten(2, (points.shape[1], points.shape[2]))
