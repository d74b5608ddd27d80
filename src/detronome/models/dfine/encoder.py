"""D-FINE's hybrid encoder: RT-DETR's, with lighter parts that fuse and halve maps (arXiv 2410.13842, appendix A.1.1).

Parameter names are the authors'. Shape letters: `B` batch, `C` channels, `D` hidden dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detronome.models.layers.conv_norm import ConvNorm
from detronome.models.rtdetr.encoder import CspRepLayer, FusingEncoder

__all__ = ["FineEncoder"]

_REP_BLOCKS = 3


class FineEncoder(FusingEncoder):
    """The encoder of D-FINE.

    Args:
        in_channels: see `FusingEncoder`, as for the others that are there.
        hidden_dim: channels.
        num_heads: heads.
        ffn_dim: width of the feed-forward block.
        num_layers: attention layers.
        expansion: width of the fusing blocks' branches, as a part of half `hidden_dim`.
        depth: depth of these, as a part of three blocks.
        checkpoint_activations: whether to.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        hidden_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        num_layers: int = 1,
        expansion: float = 1.0,
        depth: float = 1.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            checkpoint_activations=checkpoint_activations,
        )
        steps = range(len(in_channels) - 1)
        branch = round(expansion * hidden_dim // 2)
        num_blocks = round(_REP_BLOCKS * depth)
        self.lateral_convs = nn.ModuleList(ConvNorm(hidden_dim, hidden_dim, 1) for _ in steps)
        self.fpn_blocks = nn.ModuleList(_RepElanBlock(hidden_dim, branch, num_blocks) for _ in steps)
        self.downsample_convs = nn.ModuleList(nn.Sequential(_SeparateDown(hidden_dim)) for _ in steps)
        self.pan_blocks = nn.ModuleList(_RepElanBlock(hidden_dim, branch, num_blocks) for _ in steps)


class _RepElanBlock(nn.Module):
    """Two CSP branches in a row whose outputs are all kept and squeezed (RepNCSPELAN4 of YOLOv9, arXiv 2402.13616)."""

    def __init__(self, hidden_dim: int, branch: int, num_blocks: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(2 * hidden_dim, 2 * hidden_dim, 1, activation="silu")
        self.cv2 = nn.Sequential(
            CspRepLayer(hidden_dim, branch, num_blocks=num_blocks), ConvNorm(branch, branch, 3, activation="silu")
        )
        self.cv3 = nn.Sequential(
            CspRepLayer(branch, branch, num_blocks=num_blocks), ConvNorm(branch, branch, 3, activation="silu")
        )
        self.cv4 = ConvNorm(2 * (hidden_dim + branch), hidden_dim, 1, activation="silu")

    def forward(self, x: Float[Tensor, "B C _h _w"]) -> Float[Tensor, "B D _h _w"]:
        x = self.cv1(x)
        first = self.cv2(x.chunk(2, dim=1)[1])
        return self.cv4(torch.cat((x, first, self.cv3(first)), dim=1))


class _SeparateDown(nn.Module):
    """Halves a map: channels by a 1x1 convolution, cells by a depthwise one (SCDown of YOLOv10, arXiv 2405.14458)."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(hidden_dim, hidden_dim, 1)
        self.cv2 = ConvNorm(hidden_dim, hidden_dim, 3, stride=2, groups=hidden_dim)

    def forward(self, x: Float[Tensor, "B D _ _"]) -> Float[Tensor, "B D _ _"]:
        return self.cv2(self.cv1(x))
