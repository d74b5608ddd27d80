"""A small residual network for images of 100-300 pixels that learns from scratch in minutes.

BatchNorm, not GroupNorm or frozen statistics: both of those were measured to start much more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from detronome.models.layers.activation_checkpointing import CheckpointedSequential, checkpointed

__all__ = ["CompactBackbone"]


class CompactBackbone(nn.Module):
    """A strided stem and residual stages at strides 4, 8, 16, ...

    Args:
        widths: channels of each stage.
        depths: residual blocks of each stage.
        checkpoint_activations: compute stem and stages again in backward instead of keeping what they compute.
    """

    def __init__(self, *, widths: Sequence[int], depths: Sequence[int], checkpoint_activations: bool = False) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, stride=4, padding=3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages = []
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [ResidualBlock(widths[max(i - 1, 0)], width, stride=1 if i == 0 else 2)]
            blocks += [ResidualBlock(width, width, stride=1) for _ in range(depth - 1)]
            stages.append(CheckpointedSequential(*blocks, checkpoint_activations=checkpoint_activations))
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _width _h _w"]]:
        """Return one feature map a stage, finest first."""
        x = checkpointed(self.stem, images, enabled=self.checkpoint_activations, norms_in=[self.stem])
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (arXiv 1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Float[Tensor, "B _in _h _w"]) -> Float[Tensor, "B _out _h2 _w2"]:
        residual = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        return self.activation(residual + self.shortcut(x))
