"""Sine position encodings of a feature map.

Shape letters: `B` batch, `H W` height and width of the feature map, `D` hidden dimension.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float32
from torch import Tensor, nn

__all__ = ["SinePositionEncoding", "cell_position_encoding"]


class SinePositionEncoding(nn.Module):
    """Encodes where a cell lies in its own unpadded image, 0 to 2 pi on each axis (arXiv 2005.12872, A.4).

    The first half of the channels encodes y and the second x; sine and cosine alternate, from the highest frequency
    to the lowest. Has no parameters.

    Args:
        hidden_dim: channels in all, a multiple of 4.
        temperature: ratio of the lowest to the highest wavelength.
    """

    def __init__(self, hidden_dim: int, *, temperature: float = 10000.0) -> None:
        super().__init__()
        self.num_frequencies = hidden_dim // 4
        self.temperature = temperature

    def forward(self, padding_mask: Bool[Tensor, "B H W"]) -> Float32[Tensor, "B H W D"]:
        """Return the encoding, channels last. Computed in float32 under autocast too."""
        valid = ~padding_mask
        index = torch.arange(self.num_frequencies, dtype=torch.float32, device=padding_mask.device)
        wavelength = self.temperature ** (index / self.num_frequencies)
        axes = []
        for dim in (1, 2):
            position = valid.cumsum(dim, dtype=torch.float32)
            size = position.narrow(dim, -1, 1)
            angle = (position / (size + 1e-6) * (2 * math.pi)).unsqueeze(-1) / wavelength
            axes.append(torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2))
        return torch.cat(axes, dim=-1)


def cell_position_encoding(
    size_hw: tuple[int, int], hidden_dim: int, *, device: torch.device, temperature: float = 10000.0
) -> Float32[Tensor, "S D"]:
    """Return an encoding of each cell's row and column, counted from 0, cells row by row (RT-DETR, arXiv 2304.08069).

    A quarter of the channels each: sine of the row, cosine of the row, sine of the column, cosine of the column.

    Args:
        size_hw: height and width of the map; `S` is their product.
        hidden_dim: channels in all, a multiple of 4.
        device: where to make it.
        temperature: ratio of the lowest to the highest wavelength.
    """
    height, width = size_hw
    quarter = hidden_dim // 4
    frequency = temperature ** -(torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    # Not repeat_interleave: the ONNX exporter expands it along the wrong axis where sizes are dynamic.
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None].expand(-1, width).flatten()
    columns = torch.arange(width, dtype=torch.float32, device=device).repeat(height)
    rows, columns = rows[:, None] * frequency, columns[:, None] * frequency
    return torch.cat((rows.sin(), rows.cos(), columns.sin(), columns.cos()), dim=-1)
