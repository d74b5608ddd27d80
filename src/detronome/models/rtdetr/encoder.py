"""RT-DETR's hybrid encoder: attention within the coarsest map, convolutions across all maps (arXiv 2304.08069, 4.2).

Parameter names are the authors'. Shape letters: `B` batch, `C` channels, `D` hidden dimension, `S` cells of a map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from detronome.models.layers.activation_checkpointing import checkpointed
from detronome.models.layers.attention import MultiHeadAttention
from detronome.models.layers.conv_norm import ConvNorm, conv_norm
from detronome.models.layers.position_encoding import cell_position_encoding
from detronome.models.layers.tokens import tokens_of

__all__ = ["CspRepLayer", "FusingEncoder", "HybridEncoder", "projected"]

_REP_BLOCKS = 3


class FusingEncoder(nn.Module):
    """Lets the coarsest map's cells attend to each other, then mixes the maps from coarse to fine and back.

    What mixes them is the subclass's: for each map but one, a lateral convolution and a block that fuses two maps on
    the way to the finer one, a part that halves a map, and a block that fuses two on the way back.

    Args:
        in_channels: of the backbone's maps, finest first; each map has half the size of the one before.
        hidden_dim: channels of all maps from here on, a multiple of 4 and of `num_heads`.
        num_heads: heads of the attention.
        ffn_dim: width of its feed-forward block.
        num_layers: attention layers, 0 or more.
        checkpoint_activations: compute each attention layer and fusing block again in backward instead of keeping what
            it computes.
    """

    lateral_convs: nn.ModuleList
    fpn_blocks: nn.ModuleList
    downsample_convs: nn.ModuleList
    pan_blocks: nn.ModuleList

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        hidden_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        num_layers: int = 1,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.hidden_dim = hidden_dim
        self.input_proj = nn.ModuleList(projected(channels, hidden_dim) for channels in in_channels)
        attention = _Attention(
            [_AttentionLayer(hidden_dim, num_heads, ffn_dim) for _ in range(num_layers)],
            checkpoint_activations=checkpoint_activations,
        )
        self.encoder = nn.ModuleList([attention])

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B D _ _"]]:
        """Return as many maps of the same sizes, finest first."""
        *finer, coarsest = [project(x) for project, x in zip(self.input_proj, maps, strict=True)]
        top_down = [self._attend(coarsest)]
        for lateral, block, skip in zip(self.lateral_convs, self.fpn_blocks, reversed(finer), strict=True):
            top_down[0] = lateral(top_down[0])
            # To the finer map's own size: a side that 32 does not divide was rounded up on the way.
            enlarged = F.interpolate(top_down[0], size=skip.shape[-2:], mode="nearest")
            top_down.insert(0, self._run(block, torch.cat((enlarged, skip), dim=1)))
        bottom_up = top_down[:1]
        for shrink, block, skip in zip(self.downsample_convs, self.pan_blocks, top_down[1:], strict=True):
            bottom_up.append(self._run(block, torch.cat((shrink(bottom_up[-1]), skip), dim=1)))
        return bottom_up

    def fuse(self) -> None:
        """Merge the branches of the RepVGG blocks into one convolution each, for prediction: same result, less work.

        Changes the state dict's keys; the encoder cannot be trained afterwards.
        """
        for module in self.modules():
            if isinstance(module, _RepVggBlock):
                module.fuse()

    def _attend(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        size_hw = (x.shape[-2], x.shape[-1])
        positions = cell_position_encoding(size_hw, self.hidden_dim, device=x.device).to(x.dtype)
        tokens = tokens_of(x)
        tokens = self.encoder[0](tokens, positions)
        return tokens.transpose(1, 2).unflatten(-1, size_hw)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpointed(block, x, enabled=self.checkpoint_activations, norms_in=[block])


class HybridEncoder(FusingEncoder):
    """The encoder of RT-DETR: plain convolutions, and CSP blocks that fuse.

    Args:
        in_channels: see `FusingEncoder`, as for the others.
        hidden_dim: channels.
        num_heads: heads.
        ffn_dim: width of the feed-forward block.
        num_layers: attention layers.
        expansion: width of the fusing blocks, as a part of `hidden_dim`.
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
        self.lateral_convs = nn.ModuleList(ConvNorm(hidden_dim, hidden_dim, 1, activation="silu") for _ in steps)
        self.fpn_blocks = nn.ModuleList(CspRepLayer(2 * hidden_dim, hidden_dim, expansion=expansion) for _ in steps)
        self.downsample_convs = nn.ModuleList(
            ConvNorm(hidden_dim, hidden_dim, 3, stride=2, activation="silu") for _ in steps
        )
        self.pan_blocks = nn.ModuleList(CspRepLayer(2 * hidden_dim, hidden_dim, expansion=expansion) for _ in steps)


def projected(in_channels: int, hidden_dim: int) -> nn.Sequential:
    """Return a 1x1 convolution and its norm."""
    conv = nn.Conv2d(in_channels, hidden_dim, 1, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(hidden_dim)))


class _Attention(nn.Module):
    """The attention layers under the authors' names."""

    def __init__(self, layers: list[_AttentionLayer], *, checkpoint_activations: bool) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Float[Tensor, "B S D"], positions: Float[Tensor, "S D"]) -> Float[Tensor, "B S D"]:
        for layer in self.layers:
            x = checkpointed(layer, x, positions, enabled=self.checkpoint_activations)
        return x


class _AttentionLayer(nn.Module):
    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(hidden_dim, num_heads)
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)

    def forward(self, x: Float[Tensor, "B S D"], positions: Float[Tensor, "S D"]) -> Float[Tensor, "B S D"]:
        query = x + positions
        x = self.norm1(x + self.self_attn(query, query, x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


class CspRepLayer(nn.Module):
    """Two 1x1 branches, one of them through RepVGG blocks, added (cross stage partial, arXiv 1911.11929).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        expansion: channels of the branches, as a part of `out_channels`.
        num_blocks: RepVGG blocks.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expansion: float = 1.0, num_blocks: int = _REP_BLOCKS
    ) -> None:
        super().__init__()
        width = int(out_channels * expansion)
        self.conv1 = ConvNorm(in_channels, width, 1, activation="silu")
        self.conv2 = ConvNorm(in_channels, width, 1, activation="silu")
        self.bottlenecks = nn.Sequential(*(_RepVggBlock(width) for _ in range(num_blocks)))
        self.conv3: nn.Module = nn.Identity()
        if width != out_channels:
            self.conv3 = ConvNorm(width, out_channels, 1, activation="silu")

    def forward(self, x: Float[Tensor, "B C _h _w"]) -> Float[Tensor, "B D _h _w"]:
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))


class _RepVggBlock(nn.Module):
    """A 3x3 and a 1x1 convolution, added; one 3x3 convolution once fused (arXiv 2101.03697)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, width, 3)
        self.conv2 = ConvNorm(width, width, 1)
        self.conv: nn.Conv2d | None = None

    def forward(self, x: Float[Tensor, "B C _h _w"]) -> Float[Tensor, "B C _h _w"]:
        if self.conv is not None:
            return conv_norm(x, self.conv, None, "silu")
        return F.silu(self.conv1(x) + self.conv2(x))

    @torch.no_grad()
    def fuse(self) -> None:
        """Replace the two by one; again changes nothing."""
        if self.conv is not None:
            return
        (kernel, bias), (kernel_1x1, bias_1x1) = self.conv1.fused(), self.conv2.fused()
        self.conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1, device=kernel.device)
        self.conv.weight = nn.Parameter(kernel + F.pad(kernel_1x1, (1, 1, 1, 1)))
        self.conv.bias = nn.Parameter(bias + bias_1x1)
        del self.conv1, self.conv2
