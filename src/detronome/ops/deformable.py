"""Multi-scale deformable attention's sampling step (arXiv 2010.04159, equation 3) in plain PyTorch.

Shape letters: `B` batch, `H` heads, `Q` queries, `P` points of one level, `K` levels, `D` channels of one head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["deformable_sample"]


def deformable_sample(
    values: Sequence[Float[Tensor, "B H D _height _width"]],
    locations: Float[Tensor, "B H Q K P 2"],
    weights: Float[Tensor, "B H Q K P"],
) -> Float[Tensor, "B Q H*D"]:
    """Read each level's map at the locations, bilinearly, and return the weighted sum over levels and points.

    Args:
        values: one map per level.
        locations: (x, y), 0-1 of the padded map; outside it reads zeros.
        weights: attention weights, which sum to 1 over `K P`.
    """
    batch, heads, queries, levels, points, _ = locations.shape
    grids = (2 * locations - 1).flatten(0, 1)
    sampled = [
        F.grid_sample(value.flatten(0, 1), grids[:, :, level], align_corners=False)
        for level, value in enumerate(values)
    ]
    all_points = torch.stack(sampled, dim=-2) if levels > 1 else sampled[0].unsqueeze(-2)
    summed = (all_points * weights.reshape(batch * heads, 1, queries, levels, points)).sum((-2, -1))
    return summed.view(batch, heads * summed.shape[1], queries).transpose(1, 2)
